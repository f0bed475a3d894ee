"""The denoiser of medsyn.models.unet by faster operations; the tests prove that both give the same numbers.

`unet.FastUNet` is the network that training and sampling run. `convolution`, `normalization`, `fused_norm` (with its
`norm_kernels` for a GPU) and `blocks` are the operations it replaces, `denoiser` computes once per volume what all
solver steps share, `footprint` estimates memory.
"""
