"""The backend `megatron-core`: Megatron Core's own GPTModel, optimizer and schedules (see `backends.base`)."""
