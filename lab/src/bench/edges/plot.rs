//! The figures as a picture: what is varied to the right, what it costs upwards, both by powers of ten.

use std::path::Path;

use anyhow::{Context, Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;

use super::{Budgets, Measured, Size, mebibytes};

const SIZE: (u32, u32) = (1_080, 640);
const FONT: &str = "sans-serif";
const MARK: i32 = 4;

/// One curve: its name, its colour, and which figures belong to it.
type Curve = (&'static str, RGBColor, fn(&Measured) -> Option<f64>);

/// What it costs: its name, and a figure of it, above 0.
type Cost = (&'static str, fn(&Measured) -> f64);

const CONNECTIONS: &[Curve] = &[("50 edges", BLUE, |one| match one.size {
    Size::Connections(number) => Some(number as f64),
    Size::Edges(_) => None,
})];

const EDGES: &[Curve] = &[
    ("budgets with room for all", RED, |one| edges(one, Budgets::Wide)),
    ("default budgets", BLUE, |one| edges(one, Budgets::Default)),
];

const COSTS: &[Cost] = &[
    ("resident memory of the agent at its peak, MiB", |one| mebibytes(one.resident.1)),
    ("time of a scrape, ms", |one| one.times.median * 1e3),
    ("CPU of a scrape, ms", |one| one.cpu.median * 1e3),
];

fn edges(one: &Measured, budgets: Budgets) -> Option<f64> {
    match one.size {
        Size::Edges(number) if one.budgets == budgets => Some(number as f64),
        _ => None,
    }
}

/// Draws what was measured.
///
/// # Errors
/// When the file cannot be written.
pub(super) fn draw(measured: &[Measured], path: &Path) -> Result<()> {
    let mut text = String::new();
    // The error of a drawing borrows the drawing.
    draw_into(measured, &mut text).map_err(|error| anyhow!("drawing the plot: {error}"))?;
    std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

fn draw_into(measured: &[Measured], text: &mut String) -> Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::with_string(text, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let panels = root.split_evenly((2, COSTS.len()));
    for (row, (what, curves)) in [("connections", CONNECTIONS), ("edges", EDGES)].into_iter().enumerate() {
        for (column, cost) in COSTS.iter().enumerate() {
            panel(&panels[row * COSTS.len() + column], what, curves, cost, measured)?;
        }
    }
    root.present()?;
    Ok(())
}

fn panel(
    area: &DrawingArea<SVGBackend<'_>, Shift>,
    what: &str,
    curves: &[Curve],
    (name, cost): &Cost,
    measured: &[Measured],
) -> Result<(), Box<dyn std::error::Error>> {
    let points = |curve: &Curve| -> Vec<(f64, f64)> {
        measured.iter().filter_map(|one| Some((curve.2(one)?, cost(one)))).collect()
    };
    let x = curves.iter().flat_map(points).map(|(x, _)| x);
    // All panels of a cost have the same height, so that they can be compared.
    let y = measured.iter().map(cost);
    let (Some(x), Some(y)) = (decades(x), decades(y)) else { return Ok(()) };
    let mut chart = ChartBuilder::on(area)
        .caption(name, (FONT, 15))
        .margin(8)
        .margin_right(24)
        .x_label_area_size(36)
        .y_label_area_size(48)
        .build_cartesian_2d((x.0..x.1).log_scale(), (y.0..y.1).log_scale())?;
    let number = |value: &f64| if *value < 1.0 { format!("{value:.1}") } else { format!("{value:.0}") };
    chart
        .configure_mesh()
        .x_desc(what)
        .x_labels(4)
        .y_labels(6)
        .x_label_formatter(&number)
        .y_label_formatter(&number)
        .label_style((FONT, 12))
        .light_line_style(TRANSPARENT)
        .draw()?;
    for curve in curves {
        let (label, colour, _) = *curve;
        let points = points(curve);
        chart
            .draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(2)))?
            .label(label)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2)));
        chart.draw_series(points.iter().map(|point| Circle::new(*point, MARK, colour.filled())))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .label_font((FONT, 12))
        .background_style(WHITE.mix(0.8))
        .draw()?;
    Ok(())
}

/// The powers of ten around these.
fn decades(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    // Zero has no place between powers of ten.
    let above = values.filter(|value| *value > 0.0);
    let (low, high) = above.fold((f64::INFINITY, 0.0_f64), |(low, high), value| (low.min(value), high.max(value)));
    (high > 0.0).then(|| {
        let (low, high) = (low.log10().floor(), high.log10().ceil());
        (10.0_f64.powf(low), 10.0_f64.powf(high.max(low + 1.0)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_reach_from_a_power_of_ten_to_another() {
        assert_eq!(decades([10.0, 1_000.0, 50_000.0].into_iter()), Some((10.0, 100_000.0)));
        assert_eq!(decades([0.3, 0.9].into_iter()), Some((0.1, 1.0)));
        assert_eq!(decades([0.0, 20.0].into_iter()), Some((10.0, 100.0)));
        assert_eq!(decades([10.0].into_iter()), Some((10.0, 100.0)));
        assert_eq!(decades(std::iter::empty()), None);
    }
}
