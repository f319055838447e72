"""The backend `megatron-deepspeed`: a checkout of Megatron-DeepSpeed that the user names (see `backends.external`).

Its `megatron` package has the name of Megatron Core's, so that it runs in processes of its own.
"""
