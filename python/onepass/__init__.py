"""Attention kernels of onepass for NVIDIA GPUs, on PyTorch's tensors: see onepass.flash_attn_interface."""
