"""Photos in: any picture file becomes upright RGB uint8."""

from __future__ import annotations

import io
import struct
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from util.errors import UserError, remark
from util.files import check_file

_NEEDED = "a picture (png, jpg, webp, bmp, tiff, gif)"
_SUFFIXES = {
    ".png",
    ".jpg",
    ".jpeg",
    ".webp",
    ".bmp",
    ".tif",
    ".tiff",
    ".gif",
    ".ppm",
    ".pgm",
    ".jp2",
    ".avif",
}
_SUFFIXES |= {".heic", ".heif"}  # pictures too, though refused
# What Pillow's readers raise on damaged files
_DAMAGE = (
    OSError,
    ValueError,
    TypeError,
    LookupError,
    SyntaxError,
    EOFError,
    MemoryError,
    ArithmeticError,
    struct.error,
)
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "JPEG2000", "AVIF")


def is_image(path: str | Path) -> bool:
    """Whether a file is a picture, by its content, or by its name where the content is no known picture."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=_FORMATS):
                return True
    except (*_DAMAGE, Image.DecompressionBombError):
        return Path(path).suffix.lower() in _SUFFIXES


def read_image(path: str | Path, flag: str) -> np.ndarray:
    """A picture as RGB uint8 (H, W, 3), upright as its EXIF says, in sRGB.

    Grey, palette, 16-bit, float and CMYK pictures are converted; transparent parts become white; of an
    animation the first picture is taken, with a remark. Up to 178 megapixels (8k is 33).

    Raises UserError, in one line with the flag's name, where the file is missing, empty, no picture,
    damaged or too large.
    """
    path = check_file(path, flag, _NEEDED)
    source = f"{flag} {path}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # Pillow warns of large and odd files; what matters is refused below
            with Image.open(path, formats=_FORMATS) as picture:
                if getattr(picture, "n_frames", 1) > 1 and picture.format != "MPO":
                    remark(f"{source}: {picture.n_frames} pictures are in it; the first is taken")
                    picture.seek(0)
                return np.array(_rgb(ImageOps.exif_transpose(picture)))
    except Image.DecompressionBombError:
        limit = 2 * Image.MAX_IMAGE_PIXELS / 1e6
        raise UserError(f"{source}: has more than {limit:.0f} megapixels; make it smaller first") from None
    except UnidentifiedImageError:
        raise UserError(f"{source}: is not a picture that can be read; {_NEEDED} is needed") from None
    except _DAMAGE as error:
        raise UserError(
            f"{source}: the picture is damaged ({error}); {_NEEDED} is needed; copy it again"
        ) from None


def _rgb(picture: Image.Image) -> Image.Image:
    """RGB of a picture of any mode, over white where it is transparent."""
    if picture.mode.startswith(("I", "F")):
        return Image.fromarray(_eight_bits(np.asarray(picture))).convert("RGB")
    transparent = picture.mode in ("LA", "PA", "RGBA", "RGBa", "La") or "transparency" in picture.info
    picture = _srgb(picture)
    if not transparent:
        return picture.convert("RGB")
    picture = picture.convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture).convert("RGB")


def _eight_bits(grey: np.ndarray) -> np.ndarray:
    """Grey (H, W) as uint8. White is 65535; in floats 1, 255 or 65535, the first that fits."""
    whites = (1, 255, 65535) if grey.dtype.kind == "f" else (65535,)
    grey = np.nan_to_num(grey.astype(np.float32))
    top = float(grey.max(initial=0))
    white = next((w for w in whites if top <= w), top)
    return np.round(np.clip(grey / white, 0, 1) * 255).astype(np.uint8)


def _srgb(picture: Image.Image) -> Image.Image:
    """The picture in sRGB where it carries another colour profile (phones: Display P3; print: CMYK)."""
    profile = picture.info.get("icc_profile")
    if not profile or picture.mode not in ("RGB", "CMYK"):
        return picture
    try:
        theirs, ours = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(picture, theirs, ours, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):  # a broken profile: the numbers as they are
        return picture
