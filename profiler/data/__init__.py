"""What training sequences are made of: real text, or tokens of a stated distribution. numpy alone, no torch.

`text.load` reads a source and numbers its pieces; `spans` hides parts of sequences for encoder-decoders; backends cut
what they need of both.
"""
