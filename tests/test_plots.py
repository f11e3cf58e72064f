"""Plots: valid pictures in a Markdown image, the values inside the frame, gaps as gaps, something for nothing."""

from __future__ import annotations

import re
from math import inf, nan
from urllib.parse import unquote
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assets.charts import counts_plots, error_plot, frames_plots
from assets.plots import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Dot, bar_plot, line_plot, markdown, number
from uniq_pipeline.intake import LATENESS_STEPS_S
from uniq_pipeline.ledger.health import Recent
from uniq_pipeline.trends import Point
from uniq_pipeline.windows import Grain, Window

SVG = "{http://www.w3.org/2000/svg}"
VALUES = st.floats(-1e9, 1e12, allow_nan=False)


def path_of(svg: str) -> str:
    """The line itself: the last path."""
    return ElementTree.fromstring(svg).findall(f".//{SVG}path")[-1].get("d")


def places(path: str) -> list[list[tuple[int, int]]]:
    """Absolute places of each piece of a line."""
    pieces = []
    for piece in path.split("M")[1:]:
        numbers = [int(n) for n in re.findall(r"-?\d+", piece)]
        x, y = numbers[0], numbers[1]
        found = [(x, y)]
        for dx, dy in zip(numbers[2::2], numbers[3::2], strict=True):
            x, y = x + dx, y + dy
            found.append((x, y))
        pieces.append(found[1:])  # the first step has no length
    return pieces


def texts(svg: str) -> list[str]:
    return [element.text for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]


@given(st.lists(VALUES, min_size=1, max_size=50))
def test_every_value_is_inside_the_frame(values):
    for x, y in sum(places(path_of(line_plot("t", [Dot(i, v) for i, v in enumerate(values)]))), []):
        assert LEFT <= x <= WIDTH - RIGHT and TOP <= y <= HEIGHT - BOTTOM


def test_larger_is_higher_and_later_is_further_right():
    ((first, second, third),) = places(path_of(line_plot("t", [Dot(0, 0), Dot(1, 10), Dot(3, 5)])))
    assert second[1] < third[1] < first[1]
    assert first[0] == LEFT and third[0] == WIDTH - RIGHT
    assert second[0] - first[0] == pytest.approx((third[0] - first[0]) / 3, abs=1)


@pytest.mark.parametrize("missing", [Dot(2, None), Dot(2, nan), Dot(2, inf), None])
def test_a_gap_is_a_gap(missing):
    dots = [Dot(0, 1), Dot(1, 2), *([missing] if missing else []), Dot(3, 3), Dot(4, 2)]
    assert [len(piece) for piece in places(path_of(line_plot("t", dots, step=1)))] == [2, 2]


def test_what_was_highest_lowest_and_last_can_be_read():
    said = texts(line_plot("users a minute", [Dot(0, 2000), Dot(60, 1000), Dot(120, 1234.5)], shown_x=str))
    assert "users a minute: last 1,234, min 1,000, max 2,000" in said
    assert {"0", "120", "2,000"} <= set(said)


@pytest.mark.parametrize("svg", [line_plot("t", []), line_plot("t", [Dot(0, None)]), bar_plot("t", [("a", 0)])])
def test_of_nothing_it_says_that_there_is_nothing_yet(svg):
    assert texts(svg) == ["t: nothing yet"]


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=30))
def test_any_text_makes_a_valid_picture_and_one_markdown_image(title):
    svg = bar_plot(title, [(title, 3.0), ("b", 1.0)])
    if "\ufffe" not in title and "\uffff" not in title:  # XML has no such characters
        ElementTree.fromstring(svg)
    image = markdown(title.replace("\\", ""), svg)
    address = re.fullmatch(r"!\[[^\[\]]*\]\(<data:image/svg\+xml,([^<>#\"\n]*)>\)", image, re.DOTALL)
    assert address and unquote(address[1]) == svg


def test_a_small_bar_is_seen_and_bars_are_in_proportion():
    path = path_of(bar_plot("t", [("a", 1_000_000), ("b", 500_000), ("c", 1), ("d", 0)]))
    heights = [int(height) for height in re.findall(r"v-(\d+)", path)]
    assert heights[0] == pytest.approx(2 * heights[1], abs=1)
    assert heights[2:] == [1]


def test_bounds_are_drawn_as_a_band_around_the_line():
    svg = line_plot("t", [Dot(i, 10, 5, 15) for i in range(3)])
    band = ElementTree.fromstring(svg).findall(f".//{SVG}path")[1].get("d")
    corners = places(band.removesuffix("z"))[0]
    ((x, y), *_) = places(path_of(svg))[0]
    assert len(corners) == 6
    assert corners[0][1] < y < corners[-1][1] and corners[0][0] == corners[-1][0] == x


@pytest.mark.parametrize(
    ("value", "shown"), [(0, "0"), (1234567, "1,234,567"), (12.34, "12.3"), (0.051, "0.05"), (-3, "-3"), (150.7, "151")]
)
def test_numbers_are_short(value, shown):
    assert number(value) == shown


def point(minute: int, users: int | None, estimate: float) -> Point:
    return Point(
        Window(Grain.MINUTE, minute * 60, minute * 60 + 60), 10, users, estimate, estimate - 5, estimate + 5, True
    )


def picture(plots: dict, name: str) -> str:
    return unquote(plots[name].value.split("svg+xml,", 1)[1].removesuffix(">)"))


def test_the_minute_that_has_only_begun_is_not_drawn():
    points = [point(minute, 100, 100.0) for minute in range(3)] + [point(3, 1, 1.0)]
    plots = counts_plots(Grain.MINUTE, points, None, 3 * 60 + 10)
    assert "last 100, min 100, max 100" in picture(plots, "plot_users")


def test_the_error_is_drawn_with_the_bounds_it_should_be_in():
    svg = picture(error_plot(Grain.MINUTE, [point(0, 100, 104.0), point(1, 100, 99.0)], None), "plot_error")
    assert "last -1, min -1, max 4" in svg and "opacity='.3'" in svg
    assert error_plot(Grain.MINUTE, [point(0, None, 104.0), point(1, None, 99.0)], None) == {}


def test_the_frames_page_shows_records_delay_and_lateness():
    commits = [(60.0 * i, 1000 + i, 5.0 + i) for i in range(10)]
    plots = frames_plots(Recent(0.0, commits, lateness={"0": 900, "1": 80, "10": 5, "inf": 2}))
    assert "last 1,009, min 1,000, max 1,009" in picture(plots, "plot_records")
    assert "last 14, min 5, max 14" in picture(plots, "plot_delay")
    svg = ElementTree.fromstring(picture(plots, "plot_lateness"))
    assert [label.text for label in svg.iter(f"{SVG}tspan")] == [
        *map(str, (1, 2, 5, 10, 30, 60, 120, 300)),
        "more",
    ]
    assert frames_plots(Recent(0.0)) == {}


def test_every_plot_is_short_enough_to_be_shown_at_once():
    commits = [(60.0 * i, 900_000 + i * 7919 % 100_000, 5.0 + i * 31 % 7) for i in range(60)]
    lateness = {str(step): 1_000_000 for step in (0, *LATENESS_STEPS_S, "inf")}
    plots = frames_plots(Recent(0.0, commits, lateness=lateness))
    users = [point(minute, 50_000 + minute * 7919 % 9000, 55_000.0) for minute in range(180)]
    plots |= counts_plots(Grain.MINUTE, users, None, 180 * 60)
    plots |= error_plot(Grain.MINUTE, users, None)
    assert len(plots) == 5
    sizes = {name: len(plot.value) for name, plot in plots.items()}
    assert max(sizes.values()) < 1000, sizes
    assert "02:59 UTC" in picture(plots, "plot_users")  # the newest are kept
