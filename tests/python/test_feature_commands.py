"""Commands on features as a user meets them: an upsampler is trained for a backbone, and makes an image's features finer."""

import json
import os
import struct

import numpy
import pytest

Image = pytest.importorskip("PIL.Image", reason="Pillow writes the images")

CLASSIFIER = "--embed 16 --kernel 3 --first-layers 0 --second-layers 1 --third-layers 1 --batch 4 --steps 2 --warmup 1".split()
UPSAMPLER = "--batch 2 --image 32 --tiles 2 --width 16 --steps 4 --warmup 1 --scored 2".split()


@pytest.fixture(scope="module")
def backbone(command, discs, tmp_path_factory):
    path = tmp_path_factory.mktemp("backbone") / "nat.safetensors"
    command("train", "image-classifier", *CLASSIFIER, "--data", discs, "-o", path)
    return path


@pytest.fixture(scope="module")
def model(command, discs, backbone, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "uplift.safetensors"
    command("train", "upsampler", *UPSAMPLER, "--data", discs, "--backbone", backbone, "-o", path)
    return path


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("picture") / "a.png"
    y, x = numpy.mgrid[0:27, 0:34]
    Image.fromarray(numpy.stack([7 * x, 9 * y, 100 * (x > y)], -1).astype(numpy.uint8)).save(path)
    return path


def read_safetensors(path) -> dict[str, numpy.ndarray]:
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    header.pop("__metadata__", None)
    found = {}
    for name, tensor in header.items():
        assert tensor["dtype"] == "F32"
        begin, end = tensor["data_offsets"]
        found[name] = numpy.frombuffer(data[8 + size + begin : 8 + size + end], numpy.float32).reshape(tensor["shape"])
    return found


def test_training_scores_test_images_and_goes_on_where_it_stopped(command, discs, backbone, tmp_path):
    words = ["train", "upsampler", *UPSAMPLER, "--data", discs, "--backbone", backbone, "--json", "--log-every", "2"]
    whole = ["--checkpoint", tmp_path / "whole", "-o", tmp_path / "a.safetensors", "--chart", tmp_path / "chart.html"]
    *steps, scores = [json.loads(line) for line in command(*words, *whole).stdout.splitlines()]
    assert [line["step"] for line in steps] == [2, 4]
    assert all(-1 <= line["cosine"] <= 1 and line["loss"] > 0 and line["mosaics_per_s"] > 0 for line in steps)
    assert scores["scored"] == "test" and scores["parameters"] > 1000
    for factor in ("2x", "4x"):
        for method in ("uplift", "bilinear", "nearest"):
            assert -1 <= scores[factor][method]["cosine"] <= 1 and scores[factor][method]["square"] >= 0
    assert "After 4 steps" in (tmp_path / "chart.html").read_text()
    again = command(*words, "--checkpoint", tmp_path / "whole", "--resume", "-o", tmp_path / "b.safetensors").stdout.splitlines()
    assert [json.loads(line) for line in again] == [scores]
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_a_chart_shows_the_windows_of_every_level(command, discs, tmp_path):
    command("train", "image-classifier", *CLASSIFIER, "--data", discs, "--chart", tmp_path / "chart.html")
    page = (tmp_path / "chart.html").read_text()
    for title in ("level 1: 7 x 7 tokens, windows of 3 x 3, dilation 1", "level 2: 4 x 4 tokens, windows of 3 x 3, dilation 1"):
        assert title in page
    command("train", "image-classifier", *CLASSIFIER, "--kind", "halonet", "--data", discs, "--chart", tmp_path / "chart.html")
    page = (tmp_path / "chart.html").read_text()
    for title in ("7 x 7 tokens, blocks of 4 with a halo of 1", "4 x 4 tokens, blocks of 4 with a halo of 1"):
        assert title in page


def test_features_are_written_and_shown(command, backbone, model, picture, tmp_path):
    words = ["upsample-features", picture, "--backbone", backbone, "--model", model, "-o", tmp_path / "f.safetensors"]
    done = command(*words, "--image-out", tmp_path / "f.png", "--explain")
    out, said = done.stdout.decode(), done.stderr.decode()
    assert "neighborhood forward" in said and "weigh_offsets forward" in said and "definition" not in said
    assert out == "features [32, 12, 16] of 24 x 32 pixels\n"  # 3 x 4 cells of 8 pixels, twice doubled
    features = read_safetensors(tmp_path / "f.safetensors")["features"]
    assert features.shape == (32, 12, 16) and numpy.isfinite(features).all() and features.std() > 0
    colours = numpy.asarray(Image.open(tmp_path / "f.png"))
    assert colours.shape == (24, 64, 3)
    assert [(colours[..., c].min(), colours[..., c].max()) for c in range(3)] == [(0, 255)] * 3  # of both maps together
    command(*words, "--doublings", "1", "--image-out", tmp_path / "g.png")
    assert read_safetensors(tmp_path / "f.safetensors")["features"].shape == (32, 6, 8)
    half = numpy.asarray(Image.open(tmp_path / "g.png"))
    assert half.shape == (24, 64, 3) and (half[::2, ::2] == half[1::2, 1::2]).all()  # as large as the image


def test_refusals_are_one_line(command, discs, backbone, model, picture, tmp_path):
    def refusal(*words) -> str:
        message = command(*words, code=2).stderr.decode()
        assert message.startswith("foveate: ") and message.count("\n") == 1
        return message

    def features(image=picture, trunk=backbone, weights=model, out=tmp_path / "f.safetensors", **more) -> str:
        options = [word for name, value in more.items() for word in (f"--{name.replace('_', '-')}", value)]
        return refusal("upsample-features", image, "--backbone", trunk, "--model", weights, "-o", out, *options)

    Image.new("RGB", (3, 20)).save(tmp_path / "thin.png")
    assert "must be 8 x 8 pixels or more, a cell of the backbone, got 20 x 3" in features(tmp_path / "thin.png")
    (tmp_path / "cut.png").write_bytes(picture.read_bytes()[:100])
    assert "cut.png" in features(tmp_path / "cut.png")
    assert "none.png" in features(tmp_path / "none.png")
    assert "model must be upsampler, got classifier" in features(weights=backbone)
    assert "model must be classifier, got upsampler" in features(trunk=model)
    other = tmp_path / "other.safetensors"
    command("train", "image-classifier", *CLASSIFIER, "--seed", "5", "--data", discs, "-o", other)
    assert "the backbone must be the one it was trained with" in features(trunk=other)
    halo = tmp_path / "halo.safetensors"
    command("train", "image-classifier", *CLASSIFIER, "--kind", "convnet", "--data", discs, "-o", halo)
    assert "a backbone's kind must be nat or dinat" in features(trunk=halo)
    (tmp_path / "bad.safetensors").write_bytes(model.read_bytes()[:-5])
    assert "bad.safetensors" in features(weights=tmp_path / "bad.safetensors")
    assert "a.gif" in features(image_out=tmp_path / "a.gif") and not (tmp_path / "f.safetensors").exists()
    train = ["train", "upsampler", "--steps", "1", "--batch", "1", "--width", "8", "--data", discs, "--backbone"]
    assert "multiple of tiles and of 32" in refusal(*train, backbone, "--image", "40")
    assert "the images to score with must be a mosaic's 16 or more, got 12" in refusal(*train, backbone, "--tiles", "4")
    assert "none.safetensors" in refusal(*train, tmp_path / "none.safetensors")
    if os.geteuid() == 0:  # for whom every folder is writable
        (tmp_path / "file").write_text("")
        blocked = tmp_path / "file" / "f.safetensors"
    else:
        (tmp_path / "locked").mkdir(mode=0o500)
        blocked = tmp_path / "locked" / "f.safetensors"
    assert str(blocked.parent) in features(out=blocked)
    assert str(blocked.parent) in refusal(*train, backbone, "-o", blocked)
