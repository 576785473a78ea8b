"""PNG and JPEG against Pillow: the same pixels of every kind of file, and files that Pillow reads back."""

import subprocess

import numpy
import pytest

Image = pytest.importorskip("PIL.Image", reason="Pillow is the oracle")


@pytest.fixture(scope="session")
def tool(build) -> str:
    return str(build / "tests" / "image_tool")


def read(tool: str, path) -> numpy.ndarray:
    done = subprocess.run([tool, "read", path], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    head, pixels = done.stdout.split(b"\n", 1)
    _, width, height, _ = head.split()
    return numpy.frombuffer(pixels, numpy.uint8).reshape(int(height), int(width), 3)


def picture(width: int = 61, height: int = 37, channels: int = 3) -> numpy.ndarray:
    """Colours that change slowly, and an edge."""
    y, x = numpy.mgrid[0:height, 0:width]
    planes = [110 + 80 * numpy.sin(x / (7 + c) + y / 9) + 30 * (x > y) for c in range(channels)]
    return numpy.stack(planes, -1).astype(numpy.uint8)


def on_white(rgba: numpy.ndarray) -> numpy.ndarray:
    values = rgba.astype(numpy.float64)
    alpha = values[..., 3:] / 255
    return numpy.floor(values[..., :3] * alpha + 255 * (1 - alpha) + 0.5).astype(numpy.uint8)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA"])
def test_png_of_every_mode_gives_pillows_pixels(tool, tmp_path, mode):
    source = Image.fromarray(picture(channels=4), "RGBA") if "A" in mode else Image.fromarray(picture())
    image = source.convert(mode)
    image.save(tmp_path / "a.png")
    expected = numpy.asarray(image.convert("RGBA"))
    numpy.testing.assert_array_equal(read(tool, tmp_path / "a.png"), on_white(expected))


def test_png_of_sixteen_bits_is_rounded(tool, tmp_path):
    values = numpy.arange(65536, dtype=numpy.uint16).reshape(256, 256)
    Image.fromarray(values).save(tmp_path / "a.png")
    expected = numpy.floor(values / 257 + 0.5).astype(numpy.uint8)
    numpy.testing.assert_array_equal(read(tool, tmp_path / "a.png"), numpy.stack([expected] * 3, -1))


# Pillow carries a libjpeg-turbo of its own, whose upsampling may round otherwise.
@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"subsampling": 1}, {"progressive": True},
                                     {"quality": 30, "optimize": True}, {"restart_marker_rows": 1}])  # fmt: skip
def test_jpeg_gives_pillows_pixels(tool, tmp_path, options):
    path = tmp_path / "a.jpg"
    Image.fromarray(picture()).save(path, **options)
    got, expected = read(tool, path).astype(int), numpy.asarray(Image.open(path).convert("RGB")).astype(int)
    assert abs(got - expected).max() <= 2


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_jpeg_without_rgb_gives_pillows_pixels(tool, tmp_path, mode):
    path = tmp_path / "a.jpg"
    Image.fromarray(picture()).convert(mode).save(path, quality=95)
    got, expected = read(tool, path).astype(int), numpy.asarray(Image.open(path).convert("RGB")).astype(int)
    assert abs(got - expected).max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_jpeg_stands_as_pillows_transpose_of_exif_says(tool, tmp_path, orientation):
    from PIL import ImageOps

    path, exif = tmp_path / "a.jpg", Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(picture()).save(path, exif=exif, quality=95)
    expected = numpy.asarray(ImageOps.exif_transpose(Image.open(path))).astype(int)
    got = read(tool, path).astype(int)
    assert got.shape == expected.shape and abs(got - expected).max() <= 2


@pytest.mark.parametrize("name, most", [("a.png", 0), ("a.jpg", 8)])
def test_pillow_reads_what_is_written(tool, tmp_path, name, most):
    pixels = picture()
    ppm = b"P6 %d %d 255\n" % (pixels.shape[1], pixels.shape[0]) + pixels.tobytes()
    subprocess.run([tool, "write", tmp_path / name], input=ppm, check=True)
    got = numpy.asarray(Image.open(tmp_path / name)).astype(int)
    assert abs(got - pixels).max() <= most
