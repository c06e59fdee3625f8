"""Reading photos of any kind, and what is refused."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageCms

from util.errors import UserError
from util.image import is_image, read_image

RAMP = np.tile(np.linspace(0, 255, 64).astype(np.uint8), (48, 1))  # (48, 64), black to white
COLOUR = np.stack([RAMP, RAMP[:, ::-1], np.full_like(RAMP, 90)], -1)


def saved(path, picture, **options):
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(path, **options)
    return path


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tiff", "a.ppm", "it's ü 100%d.png", "a.webp"])
def test_colour_comes_back(tmp_path, name):
    options = {"lossless": True} if name.endswith("webp") else {}
    image = read_image(saved(tmp_path / name, COLOUR, **options), "--ref_video_path")
    assert image.dtype == np.uint8
    assert image.flags.writeable
    assert np.array_equal(image, COLOUR)


def test_the_name_may_lie_about_the_format(tmp_path):
    saved(tmp_path / "a.jpg", COLOUR, format="PNG")
    assert np.array_equal(read_image(tmp_path / "a.jpg", "--x"), COLOUR)


@pytest.mark.parametrize(
    ("picture", "name"),
    [
        (Image.fromarray(RAMP), "grey.png"),
        (Image.fromarray(RAMP).convert("P"), "palette.png"),
        (Image.fromarray(RAMP).convert("P"), "palette.gif"),
        (Image.fromarray(RAMP.astype(np.uint16) * 257), "16_bit.png"),
        (Image.fromarray(RAMP.astype(np.uint16) * 257), "16_bit.tiff"),
        (Image.fromarray(RAMP.astype(np.int32) * 257), "32_bit.tiff"),
        (Image.fromarray(RAMP.astype(np.float32) / 255), "float_1.tiff"),
        (Image.fromarray(RAMP.astype(np.float32) + 0.25 * (RAMP < 200)), "float_255.tiff"),
        (Image.fromarray(RAMP).convert("LA"), "grey_alpha.png"),
        (Image.fromarray(np.stack([RAMP] * 3, -1)).convert("CMYK"), "print.tiff"),
    ],
)
def test_grey_in_any_form_is_the_same_picture(tmp_path, picture, name):
    image = read_image(saved(tmp_path / name, picture), "--x")
    assert image.shape == (48, 64, 3)
    assert np.abs(image.astype(int) - RAMP[..., None]).max() <= 1


def test_one_bit_pictures(tmp_path):
    image = read_image(saved(tmp_path / "a.png", Image.fromarray(RAMP > 127)), "--x")
    assert np.array_equal(image[..., 0], (RAMP > 127) * np.uint8(255))


def test_16_bit_colour(tmp_path):
    """Pillow cannot write it, so the PNG is put together here."""
    import struct
    import zlib

    rows = (COLOUR.astype(">u2") * 257).reshape(48, -1).view(np.uint8)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))

    def chunk(kind, content):
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", 64, 48, 16, 2, 0, 0, 0)
    path = tmp_path / "a.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )
    assert np.abs(read_image(path, "--x").astype(int) - COLOUR).max() <= 1


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_parts_become_white(tmp_path, mode):
    picture = Image.fromarray(np.full((48, 64), 40, np.uint8)).convert("RGBA" if mode != "LA" else "LA")
    alpha = np.full((48, 64), 255, np.uint8)
    alpha[:, :20], alpha[:, 20:40] = 0, 128
    picture.putalpha(Image.fromarray(alpha))
    if mode == "P":
        picture = picture.quantize(8, method=Image.Quantize.FASTOCTREE)
    image = read_image(saved(tmp_path / "a.png", picture), "--x")
    assert image[10, 10].tolist() == [255, 255, 255]
    assert np.abs(image[10, 30].astype(int) - 147).max() <= 3
    assert image[10, 50].tolist() == [40, 40, 40]


@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (6, -1), (3, 2), (8, 1)])
def test_a_photo_is_turned_as_its_exif_says(tmp_path, orientation, turns):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / "a.png", COLOUR, exif=exif)
    assert np.array_equal(read_image(path, "--x"), np.rot90(COLOUR, turns))


def test_a_colour_profile_is_taken_to_srgb(tmp_path):
    """In a profile with red and blue swapped by name, the numbers must change; in sRGB they stay."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    path = saved(tmp_path / "a.png", COLOUR, icc_profile=srgb)
    assert np.abs(read_image(path, "--x").astype(int) - COLOUR).max() <= 2
    broken = saved(tmp_path / "b.png", COLOUR, icc_profile=b"no profile" * 20)
    assert np.array_equal(read_image(broken, "--x"), COLOUR)
    linear = bytearray(srgb)
    start = linear.index(b"rXYZ") + 4, linear.index(b"bXYZ") + 4
    red, blue = (linear[s : s + 8] for s in start)
    linear[start[0] : start[0] + 8], linear[start[1] : start[1] + 8] = blue, red
    swapped = read_image(saved(tmp_path / "c.png", COLOUR, icc_profile=bytes(linear)), "--x")
    assert np.abs(swapped.astype(int) - COLOUR[..., ::-1]).max() <= 2


def test_of_an_animation_the_first_picture_is_taken(tmp_path, capsys):
    frames = [Image.fromarray(np.full((48, 64), v, np.uint8)) for v in (10, 100, 200)]
    for name in ("a.gif", "a.webp"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        assert np.abs(read_image(tmp_path / name, "--x").astype(int) - 10).max() <= 2
        assert (
            capsys.readouterr().err
            == f"note: --x {tmp_path / name}: 3 pictures are in it; the first is taken\n"
        )


def test_an_8k_photo_is_read_without_a_warning(tmp_path, recwarn):
    path = saved(tmp_path / "8k.jpg", np.full((4320, 7680, 3), 77, np.uint8))
    assert read_image(path, "--x").shape == (4320, 7680, 3)
    Image.new("1", (10000, 9000)).save(tmp_path / "90.png")  # Pillow warns from 89 megapixels on
    assert read_image(tmp_path / "90.png", "--x").shape == (9000, 10000, 3)
    assert not recwarn.list


def refusal(path):
    with pytest.raises(UserError) as caught:
        read_image(path, "--ref_video_path")
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(f"--ref_video_path {path}: ")


def test_refused_in_one_line(tmp_path, clip):
    (tmp_path / "text.png").write_text("this is no picture\n" * 9)
    assert refusal(tmp_path / "text.png") == (
        "is not a picture that can be read; a picture (png, jpg, webp, bmp, tiff, gif) is needed"
    )
    assert refusal(clip).startswith("is not a picture that can be read")
    for name in ("a.png", "a.jpg"):
        whole = saved(tmp_path / name, np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
        whole.write_bytes(whole.read_bytes()[:1500])
        assert refusal(whole).startswith("the picture is damaged (")
    (tmp_path / "empty.png").touch()
    assert refusal(tmp_path / "empty.png").startswith("the file is empty (0 bytes); a picture (png")
    assert refusal(tmp_path / "none.png").startswith("no such file")
    assert refusal(tmp_path).startswith("is a folder")
    Image.new("1", (20000, 20000)).save(tmp_path / "bomb.png")
    assert refusal(tmp_path / "bomb.png") == "has more than 179 megapixels; make it smaller first"


def test_is_image_goes_by_content_and_then_by_name(tmp_path, clip):
    content = io.BytesIO()
    Image.fromarray(COLOUR).save(content, "PNG")
    (tmp_path / "without_suffix").write_bytes(content.getvalue())
    (tmp_path / "text.jpg").write_text("no picture")
    assert is_image(tmp_path / "without_suffix")
    assert is_image(tmp_path / "text.jpg")
    assert is_image(tmp_path / "none.PNG")
    assert not is_image(clip)
    assert not is_image(tmp_path / "none.mp4")
    assert not is_image(tmp_path)
