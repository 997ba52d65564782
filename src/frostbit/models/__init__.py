"""Float networks to start from: plain torch modules, made binary later by ``binarize_``."""

from frostbit.models import bert, binarynet, bireal, cifar_resnet, mlp, mobilenet, resnet, vit, xnornet
from frostbit.models.factory import arguments, create, register
from frostbit.models.factory import list_models as list

__all__ = [
    "arguments",
    "bert",
    "binarynet",
    "bireal",
    "cifar_resnet",
    "create",
    "list",
    "mlp",
    "mobilenet",
    "register",
    "resnet",
    "vit",
    "xnornet",
]
