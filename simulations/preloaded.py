"""What every worker process needs, imported once by the server that they are forked from."""

from PIL import Image

from fgvc_core.importing import importing

with importing():
    # Of torchvision what some augmentations take, which a worker would import for itself.
    import torchvision.transforms.v2  # noqa: F401

    import fieldmark.client.app
    import fieldmark.client.workspace  # noqa: F401

    # Pillow imports its formats when it opens the first picture.
    Image.init()
