"""Commands on images as a user meets them: super-resolution is trained, and images are made larger with its weights."""

import json
import struct
import zlib

import numpy
import pytest

Image = pytest.importorskip("PIL.Image", reason="Pillow writes the photographs")

TINY = "--dim 8 --heads 4 --blocks 2 --patch 4 --centres 2 --batch 2 --size 12 --steps 4 --warmup 1".split()


def with_option(words: list, flag: str, value) -> list:
    at = words.index(flag) if flag in words else len(words)
    return [*words[:at], flag, value, *words[at + 2 :]]


def picture(width: int = 52, height: int = 40, phase: float = 0) -> numpy.ndarray:
    """Colours that change slowly, and an edge."""
    y, x = numpy.mgrid[0:height, 0:width]
    planes = [110 + 80 * numpy.sin(x / (5 + c) + y / 7 + phase) + 40 * (x > y) for c in range(3)]
    return numpy.stack(planes, -1).astype(numpy.uint8)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for i in range(3):
        Image.fromarray(picture(phase=i)).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def weights(command, photos, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "x2.safetensors"
    command("train", "super-resolution", *TINY, "--data", photos, "--test-data", photos, "-o", path)
    return path


def test_training_scores_held_out_photos_and_goes_on_where_it_stopped(command, photos, tmp_path):
    words = ["train", "super-resolution", *TINY, "--data", photos, "--test-data", photos, "--json", "--log-every", "2"]
    whole = ["--checkpoint", tmp_path / "whole", "-o", tmp_path / "a.safetensors", "--chart", tmp_path / "chart.html"]
    *steps, scores = [json.loads(line) for line in command(*words, *whole).stdout.splitlines()]
    assert [line["step"] for line in steps] == [2, 4] and all(line["loss"] > 0 and line["pixels_per_s"] > 0 for line in steps)
    assert scores["scored"] == "test" and scores["parameters"] > 1000 and scores["macs"] > 1e9
    assert [photo["name"] for photo in scores["photos"]] == ["0.png", "1.png", "2.png"]
    for key in ("psnr", "ssim", "bicubic_psnr", "bicubic_ssim"):
        assert scores[key] == pytest.approx(sum(photo[key] for photo in scores["photos"]) / 3)
    assert "After 4 steps" in (tmp_path / "chart.html").read_text()
    again = command(*words, "--checkpoint", tmp_path / "whole", "--resume", "-o", tmp_path / "b.safetensors").stdout.splitlines()
    assert [json.loads(line) for line in again] == [scores]
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    table = command(*words[:-3], "--aggregates", "false").stdout.decode().splitlines()
    assert table[-1].startswith("test, 3 photos") and "bicubic" in table[-1] and table[-2].startswith("2.png")


def test_training_refuses_in_one_line(command, photos, tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes((photos / "0.png").read_bytes()[:300])
    words = ["train", "super-resolution", *TINY, "--data", photos, "--test-data", photos]
    for (flag, value), message in {
        ("--scale", 5): "--scale: must be 2 .. 4, got 5",
        ("--dim", 9): "super-resolution: dim must be a multiple of heads (4), got 9",
        ("--size", 4): "super-resolution: size must be >= the 5 pixels of the largest patch of attention, got 4",
        ("--size", 30): "must be 30 x 30 pixels or more when reduced, got 20 x 26",
        ("--data", tmp_path): "must have files .png, .jpg or .jpeg, got none",
        ("--test-data", tmp_path / "broken"): "a.png: must be a whole PNG file",
        ("-o", photos / "0.png" / "x"): "output folder: must be ",
    }.items():
        refused = command(*with_option(words, flag, value), code=2).stderr.decode()
        assert refused.startswith("foveate: ") and message in refused and refused.count("\n") == 1


def test_images_are_enlarged_as_trained(command, weights, tmp_path):
    pixels = picture(61, 45)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    words = ["upscale", tmp_path / "a.png", "--model", weights]
    said = command(*words, "-o", tmp_path / "whole.png", "--tile", "0", "--side-by-side", tmp_path / "both.png").stdout.decode()
    assert "61 x 45 -> 122 x 90" in said and said.count("\n") == 1
    whole = numpy.asarray(Image.open(tmp_path / "whole.png")).astype(int)
    assert whole.shape == (90, 122, 3)
    both = numpy.asarray(Image.open(tmp_path / "both.png")).astype(int)
    assert both.shape == (90, 244, 3) and (both[:, 122:] == whole).all() and abs(both[:, :122] - whole).mean() < 8
    coarse = whole.reshape(45, 2, 61, 2, 3).mean((1, 3))
    assert abs(coarse - pixels).mean() < 4  # it is the same picture
    for name, *more in [("tiles.png", "--tile", 24, "--overlap", 12), ("mean.png", "--self-ensemble"),
                        ("fitted.png", "--refine-centres"), ("a.jpg",)]:  # fmt: skip
        command(*words, "-o", tmp_path / name, *more)
        assert abs(numpy.asarray(Image.open(tmp_path / name)).astype(int) - whole).mean() < 4, name


def test_grey_transparent_and_deep_images_come_out_as_they_went_in(command, weights, tmp_path):
    def upscale(image, name="out.png"):
        image.save(tmp_path / "in.png")
        command("upscale", tmp_path / "in.png", "--model", weights, "-o", tmp_path / name)
        return Image.open(tmp_path / name)

    pixels = picture(20, 16)
    assert upscale(Image.fromarray(pixels[..., 0])).mode == "L"
    alpha = numpy.zeros((16, 20), numpy.uint8)
    alpha[:, 10:] = 255
    out = upscale(Image.fromarray(numpy.dstack([pixels, alpha]), "RGBA"))
    assert out.mode == "RGBA" and out.size == (40, 32)
    got = numpy.asarray(out)[..., 3].astype(int)
    want = numpy.asarray(Image.fromarray(alpha).resize((40, 32), Image.Resampling.BICUBIC)).astype(int)
    assert abs(got - want).max() <= 2
    opaque = upscale(Image.fromarray(pixels))
    assert (numpy.asarray(opaque) == numpy.asarray(out)[..., :3]).all()
    flat = numpy.asarray(upscale(Image.fromarray(numpy.dstack([pixels, alpha]), "RGBA"), "out.jpg"))
    assert flat.shape == (32, 40, 3) and flat[:, :12].mean() > 245
    deep = upscale(Image.fromarray(pixels[..., 0].astype(numpy.uint16) * 257))
    assert deep.mode == "L" and (numpy.asarray(deep) == numpy.asarray(upscale(Image.fromarray(pixels[..., 0])))).all()


def png_of_size(width: int, height: int) -> bytes:
    """A picture that claims so many pixels and has none."""

    def chunk(body: bytes) -> bytes:
        return struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)) + chunk(b"IDAT")


def test_upscaling_refuses_in_one_line(command, weights, photos, tmp_path):
    good = photos / "0.png"
    Image.fromarray(picture(30, 4)).save(tmp_path / "small.png")
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:400])
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "huge.png").write_bytes(png_of_size(1 << 20, 1 << 20))
    for image, more, message in [
        (tmp_path / "none.png", [], "none.png"),
        (tmp_path / "small.png", [], "small.png: must have 5 x 5 pixels or more, the model's largest patch, got 30 x 4"),
        (tmp_path / "cut.png", [], "cut.png: must be a whole PNG file, libpng says: the file ends early"),
        (tmp_path / "text.png", [], "text.png: must be a PNG or JPEG file, got 10 bytes that start with 'no pictu'"),
        (tmp_path / "huge.png", [], "huge.png: must have at most 268435456 pixels, got 1048576 x 1048576"),
        (good, ["--tile", 4], "upscale: --tile must be >= 5, the model's largest patch, got 4"),
        (good, ["--tile", 20, "--overlap", 11], "tiles: overlap must be at most half of a tile of 20 pixels, got 11"),
        (good, ["--tile", "many"], "--tile: must be 0 .. 1048576, got many"),
        (good, ["-o", tmp_path / "a.gif"], "a.gif: the name of an image must end in .png, .jpg or .jpeg"),
        (good, ["-o", good / "a.png"], "output folder: must be "),
        (good, ["--side-by-side", tmp_path / "a"], "a: the name of an image must end in .png, .jpg or .jpeg"),
        (good, ["--model", tmp_path / "none"], "none"),
        (good, ["--model", good], "0.png"),
    ]:
        words = ["upscale", image, "--model", weights, "-o", tmp_path / "out.png"]
        for flag, value in zip(more[::2], more[1::2], strict=True):
            words = with_option(words, flag, value)
        refused = command(*words, code=2).stderr.decode()
        assert refused.startswith("foveate: ") and message in refused and refused.count("\n") == 1, refused
    assert not (tmp_path / "out.png").exists()


def test_weights_of_other_models_are_refused_by_name(command, weights, photos, tmp_path):
    torch = pytest.importorskip("torch")
    safetensors = pytest.importorskip("safetensors.torch")
    right = safetensors.load_file(weights)

    def refused(tensors, path, metadata=None):
        if path.suffix == ".pth":
            torch.save(tensors, path)
        else:
            safetensors.save_file(tensors, path, metadata)
        return command("upscale", photos / "0.png", "--model", path, "-o", tmp_path / "out.png", code=2).stderr.decode()

    other = refused({"head.weight": torch.zeros(2, 3)}, tmp_path / "a.safetensors")
    assert "got missing first_conv.weight" in other and "unexpected 'head.weight'" in other and other.count("\n") == 1
    changed = {**right, "mid_convs.1.bias": torch.zeros(9), "extra": torch.zeros(1)}
    del changed["blocks.1.0.conv1x1.weight"]
    message = refused({"params": changed}, tmp_path / "b.pth")
    for part in ("missing blocks.1.0.conv1x1.weight", "unexpected 'extra'", "mid_convs.1.bias [9] for [8]"):
        assert part in message
    assert "foveate must be 'catanet 1', got 'checkpoint 1'" in refused(right, tmp_path / "c.safetensors", {"foveate": "checkpoint 1"})
