"""The public generator and discriminator (ECCV 2020), number for number, so that their weights can be used.

Attributes are named as the public state dict's keys; our own generator is models/generator.py.
"""

from models.upstream.combiner import UpstreamGenerator, build_generator
from models.upstream.config import DiscriminatorConfig, UpstreamConfig
from models.upstream.discriminator import UpstreamDiscriminator
from models.upstream.importer import import_upstream, load_upstream
from models.upstream.tensors import Sources, UpstreamInput, UpstreamOutput

__all__ = [
    "DiscriminatorConfig",
    "Sources",
    "UpstreamConfig",
    "UpstreamDiscriminator",
    "UpstreamGenerator",
    "UpstreamInput",
    "UpstreamOutput",
    "build_generator",
    "import_upstream",
    "load_upstream",
]
