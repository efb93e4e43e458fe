//! Charts as SVG, which need nothing to be looked at but a browser.

use anyhow::anyhow;
use plotters::prelude::*;

/// One bar: a median with its spread.
#[derive(Debug, Clone)]
pub(super) struct Bar {
    pub(super) label: String,
    pub(super) median: f64,
    pub(super) min: f64,
    pub(super) max: f64,
    /// Whether it is ours.
    pub(super) ours: bool,
}

impl Bar {
    /// Something that was measured once.
    pub(super) fn of_one(label: String, value: f64, ours: bool) -> Bar {
        Bar { label, median: value, min: value, max: value, ours }
    }
}

const WIDTH: u32 = 910;
const ROW_HEIGHT: u32 = 26;
const MARGINS_HEIGHT: u32 = 90;
const LABELS_WIDTH: u32 = 380;
/// How much longer the scale is than the longest bar, as a part of it: a figure stands behind it.
const ROOM: f64 = 0.13;
/// No bar is shorter.
const LEAST: f64 = 0.01;

/// Horizontal bars on a logarithmic scale, with their spreads.
///
/// # Errors
/// There is nothing to draw.
pub(super) fn bars(title: &str, axis: &str, bars: &[Bar]) -> anyhow::Result<String> {
    let largest = bars.iter().map(|bar| bar.max).fold(LEAST * 10.0, f64::max);
    let rows = u32::try_from(bars.len())?;
    let mut svg = String::new();
    {
        let size = (WIDTH, MARGINS_HEIGHT + rows * ROW_HEIGHT);
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        draw(&area, title, axis, bars, largest).map_err(|error| anyhow!("{title}: {error}"))?;
    }
    Ok(svg)
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

fn draw(
    area: &Area<'_>,
    title: &str,
    axis: &str,
    bars: &[Bar],
    largest: f64,
) -> Result<(), Box<dyn std::error::Error>> {
    area.fill(&WHITE)?;
    let rows = f64::from(u32::try_from(bars.len())?);
    let end = largest * (largest / LEAST).powf(ROOM);
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 17))
        .margin(8)
        .x_label_area_size(36)
        .y_label_area_size(LABELS_WIDTH)
        .build_cartesian_2d((LEAST..end).log_scale(), 0.0..rows)?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .y_labels(0)
        .x_desc(axis)
        .x_label_formatter(&|seconds| format!("{seconds}"))
        .label_style(("sans-serif", 12))
        .light_line_style(TRANSPARENT)
        .draw()?;
    for (row, bar) in bars.iter().enumerate() {
        // The first is the uppermost.
        let bottom = rows - 1.0 - f64::from(u32::try_from(row)?);
        let colour = if bar.ours { RGBColor(33, 102, 172) } else { RGBColor(150, 150, 150) };
        let ends = [(LEAST, bottom + 0.18), (bar.median.max(LEAST), bottom + 0.82)];
        chart.draw_series([Rectangle::new(ends, colour.filled())])?;
        let spread = vec![(bar.min.max(LEAST), bottom + 0.5), (bar.max.max(LEAST), bottom + 0.5)];
        chart.draw_series([PathElement::new(spread, BLACK.stroke_width(2))])?;
        let (x, y) = chart.backend_coord(&(LEAST, bottom + 0.5));
        let style = ("sans-serif", 13).into_text_style(area);
        area.draw_text(&bar.label, &style, (x - i32::try_from(LABELS_WIDTH)? + 4, y - 7))?;
        let (x, y) = chart.backend_coord(&(bar.max.max(LEAST), bottom + 0.5));
        let decimals = if bar.median < 100.0 { 2 } else { 0 };
        let figure = format!("{:.decimals$}", bar.median);
        area.draw_text(&figure, &style, (x + 6, y - 7))?;
    }
    area.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bar_is_in_the_picture_with_its_figure() {
        let bar = |label: &str, median| Bar {
            label: label.to_owned(),
            median,
            min: median / 2.0,
            max: median * 2.0,
            ours: false,
        };
        let svg = bars(
            "Host lost",
            "seconds",
            &[bar("one", 12.25), bar("two & three", 0.5), bar("four", 1083.0)],
        )
        .expect("it can be drawn");
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"), "{svg}");
        for text in ["Host lost", "one", "two &amp; three", "12.25", "0.50", "1083", "seconds"] {
            assert!(svg.contains(text), "{text} is not in {svg}");
        }
    }
}
