"""The parts of one training step: operators, memory, communication, host, summed up by stage; and what it rests on."""
