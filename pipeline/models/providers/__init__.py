"""Networks whose code is elsewhere, each behind `provider:name` in a model string.

torchvision_model    torchvision's segmentation networks
smp_model            segmentation_models_pytorch
huggingface_model    a Hugging Face folder
exported_model       a program of torch.export; `program_file` reads its file without running what it brings
"""
