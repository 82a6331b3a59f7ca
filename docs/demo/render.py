"""Renders golf_ball.jpg, the image that `make demo` encodes: a golf ball on grass.

    python docs/demo/render.py docs/demo/golf_ball.jpg

The scene is a sphere lit by a sun and a sky, with dimples on a Fibonacci lattice, and 60,000 blades
of grass drawn from back to front. It was composed to look like a golf ball to a person. No model
was used to choose it, and no model was trained on it.
"""

import sys

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

WIDTH, HEIGHT, SCALE = 640, 480, 2  # drawn at SCALE times the size, then reduced
HORIZON = 0.30  # of the height, from the top
BALL = (0.52, 0.60, 0.235)  # centre x, centre y, radius; of width, height, height
_SUN = np.array([-0.5, -0.75, 0.45])  # y points down, z to the viewer
SUN = _SUN / np.linalg.norm(_SUN)


def background(rng: np.random.Generator) -> Image.Image:
    """Pale sky, dark trees far out of focus, and a lawn that fades into the distance."""
    width, height = WIDTH * SCALE, HEIGHT * SCALE
    rows = np.linspace(0, 1, height)[:, None, None]
    sky = np.array([200, 215, 228]) - rows * np.array([30, 10, -5])
    lawn = np.array([110, 150, 70]) - (rows - HORIZON) * np.array([70, 60, 50])
    image = Image.fromarray(
        np.broadcast_to(np.where(rows < HORIZON, sky, lawn), (height, width, 3)).astype(np.uint8)
    )
    draw = ImageDraw.Draw(image)
    for _ in range(220):
        x, y = rng.uniform(0, width), rng.uniform(0.08, HORIZON) * height
        radius = rng.uniform(0.03, 0.09) * height
        green = rng.uniform(50, 100)
        draw.ellipse(
            (x - radius, y - radius, x + radius, y + radius),
            fill=(int(green * 0.55), int(green), int(green * 0.45)),
        )
    return image.filter(ImageFilter.GaussianBlur(14 * SCALE))


def blades(
    image: Image.Image, rng: np.random.Generator, nearest: float, farthest: float, count: int
) -> None:
    """Draw grass with roots between two heights (0 top, 1 bottom), the farthest blades first."""
    draw = ImageDraw.Draw(image)
    width, height = image.size
    ball_x, ball_y, radius = BALL[0] * width, BALL[1] * height, BALL[2] * height
    for depth in np.sort(rng.uniform(farthest, nearest, count)):
        near = (depth - HORIZON) / (1.1 - HORIZON)  # 0 at the horizon, 1 at the viewer's feet
        x, y = rng.uniform(-0.05, 1.05) * width, depth * height
        length = height * (0.01 + 0.085 * near) * rng.uniform(0.6, 1.3)
        lean = rng.normal(0, 0.35) * length
        shade = rng.normal(1.0, 0.16)
        # The ball's shadow falls away from the sun, flattened by the slanting view.
        away = ((x - ball_x - 0.55 * radius) / (1.25 * radius)) ** 2 + (
            (y - ball_y - 0.92 * radius) / (0.42 * radius)
        ) ** 2
        shade *= 1 - 0.6 * np.exp(-(away**2))
        colour = np.array([104, 146, 52]) * shade + rng.normal(0, 7, 3)
        half = max(0.7, 2.6 * SCALE * near)
        root = [(x - half, y), (x + half, y)]
        draw.polygon(
            [*root, (x + lean, y - length)], fill=tuple(np.clip(colour, 0, 255).astype(int))
        )


def ball() -> Image.Image:
    """The lit sphere with its dimples, RGBA, on a transparent background."""
    size = int(2 * BALL[2] * HEIGHT * SCALE)
    axis = (np.arange(size) + 0.5) / size * 2 - 1
    x, y = np.meshgrid(axis, axis)
    inside = x**2 + y**2 < 1
    normal = np.stack([x, y, np.sqrt(np.clip(1 - x**2 - y**2, 0, None))], -1)
    index = np.arange(380) + 0.5  # dimples, evenly spread over the whole sphere
    polar, turn = np.arccos(1 - 2 * index / 380), np.pi * (1 + 5**0.5) * index
    dimples = np.stack(
        [np.cos(turn) * np.sin(polar), np.sin(turn) * np.sin(polar), np.cos(polar)], -1
    )
    tilt = np.array([[0.8, 0, 0.6], [0.36, 0.8, -0.48], [-0.48, 0.6, 0.64]])
    dimples = dimples @ tilt.T
    nearness = normal @ dimples.T
    nearest = nearness.argmax(-1)
    angle = np.arccos(np.clip(np.take_along_axis(nearness, nearest[..., None], -1)[..., 0], -1, 1))
    width = 0.088
    # A dimple is a bowl: its wall slopes towards the middle, most steeply near the rim.
    slope = np.where(
        angle < width,
        0.62 * np.sin(np.pi * np.clip(angle / width, 0, 1)) ** 2 * (angle / width) ** 0.5,
        0,
    )
    towards = dimples[nearest] - normal * np.cos(angle)[..., None]
    towards /= np.linalg.norm(towards, axis=-1, keepdims=True) + 1e-9
    bumped = normal + slope[..., None] * towards
    bumped /= np.linalg.norm(bumped, axis=-1, keepdims=True)
    sun = np.clip(bumped @ SUN, 0, None)
    sky = 0.5 - 0.5 * bumped[..., 1]
    grass = 0.5 + 0.5 * bumped[..., 1]
    light = (
        sun[..., None] * np.array([178, 174, 162])
        + sky[..., None] * np.array([78, 84, 94])
        + grass[..., None] ** 2 * np.array([34, 48, 22])
    )
    mirrored = 2 * (bumped @ SUN)[..., None] * bumped - SUN
    light += 70 * np.clip(mirrored[..., 2:], 0, 1) ** 40
    contact = 1 - 0.55 * np.clip((y - 0.45) / 0.55, 0, 1)  # little light reaches the underside
    light *= contact[..., None]
    rgba = np.concatenate([np.clip(light, 0, 255), 255.0 * inside[..., None]], -1)
    return Image.fromarray(rgba.astype(np.uint8), "RGBA")


def render() -> Image.Image:
    """The whole image, RGB, 640x480; the same at every call."""
    rng = np.random.default_rng(7)
    image = background(rng)
    blades(image, rng, nearest=0.84, farthest=HORIZON + 0.03, count=45_000)
    image = Image.composite(
        image.filter(ImageFilter.GaussianBlur(5 * SCALE)), image, _far_mask(image.size)
    )
    sphere = ball()
    width, height = image.size
    image.paste(
        sphere,
        (int(BALL[0] * width - sphere.width / 2), int(BALL[1] * height - sphere.height / 2)),
        sphere,
    )
    blades(image, rng, nearest=1.12, farthest=0.83, count=15_000)
    return image.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)


def _far_mask(size: tuple[int, int]) -> Image.Image:
    rows = np.linspace(0, 1, size[1])[:, None]
    mask = np.clip((0.62 - rows) / 0.25, 0, 1) * 255
    return Image.fromarray(np.broadcast_to(mask, (size[1], size[0])).astype(np.uint8))


if __name__ == "__main__":
    render().save(sys.argv[1], quality=90)
