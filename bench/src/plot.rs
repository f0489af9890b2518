//! Plots of how cost and memory grow with the number of readers, as SVG: one file for each quantity and transport.
//! Owns colours, axes and legends. Takes the samples of findings that carry `"plot"`; measures nothing.
//!
//! plotters' SVG backend needs no fonts: text is left to who shows the file. So are the colours of dark mode: the file
//! has the light ones, and a style that exchanges them where dark is preferred.

use std::collections::BTreeMap;
use std::fs;
use std::ops::{Add, Range};
use std::path::Path;

use anyhow::{Context as _, Result, anyhow};
use plotters::coord::Shift;
use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint, Ranged};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use serde::Deserialize;
use serde_json::Value;

use crate::report::Table;

/// A sample that can be plotted. Those without `plot` are none of ours.
#[derive(Debug, Deserialize)]
#[serde(tag = "plot", rename_all = "lowercase")]
enum Sample {
    Cost { subject: String, transport: String, readers: f64, us_per_delivery: f64 },
    Memory { subject: String, transport: String, readers: f64, user_bytes: f64, kernel_bytes: Option<f64> },
}

/// What a panel shows of each server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Quantity {
    Cost,
    UserMemory,
    KernelMemory,
}

impl Quantity {
    fn title(self) -> &'static str {
        match self {
            Self::Cost => "Server CPU for a delivery",
            Self::UserMemory => "User memory of a reader",
            Self::KernelMemory => "Kernel memory of a reader",
        }
    }

    /// Panels of one file stand below each other.
    fn file_stem(self) -> &'static str {
        match self {
            Self::Cost => "cost",
            Self::UserMemory | Self::KernelMemory => "memory",
        }
    }

    fn write(self, value: f64) -> String {
        match self {
            Self::Cost if value < 10.0 => format!("{value:.2} µs"),
            Self::Cost => format!("{value:.1} µs"),
            // A socket's 4 KB to the byte: a bar is at 3 % of it.
            Self::UserMemory | Self::KernelMemory if value < 10_000.0 => format!("{} B", thousands(value)),
            Self::UserMemory | Self::KernelMemory => format!("{:.1} KB", value / 1e3),
        }
    }

    /// On an axis, where values are round.
    fn write_tick(self, value: f64) -> String {
        match self {
            Self::Cost => format!("{value} µs"),
            Self::UserMemory | Self::KernelMemory if value < 1_000.0 => format!("{value} B"),
            Self::UserMemory | Self::KernelMemory => format!("{} KB", value / 1e3),
        }
    }
}

/// A line: readers and value, by readers.
type Line = Vec<(f64, f64)>;
/// Lines by server.
type Lines = BTreeMap<String, Line>;

/// What each round found, by readers.
type Rounds = BTreeMap<u64, Vec<f64>>;

/// A file that was written, and its figures as text.
pub struct Plot {
    pub file: String,
    pub title: String,
    pub tables: Vec<Table>,
}

/// Writes `plots/*.svg` into `folder`, one for each quantity and transport of which there are samples of two sizes of a
/// server: one dot shows no growth. Removes those that were drawn before and are not any more.
pub fn write_plots<'a>(folder: &Path, samples: impl Iterator<Item = &'a Value>) -> Result<Vec<Plot>> {
    let mut files: BTreeMap<(&str, String), BTreeMap<Quantity, Lines>> = BTreeMap::new();
    for (quantity, transport, lines) in gather(samples)? {
        if lines.values().all(|line| line.len() < 2) {
            continue;
        }
        files.entry((quantity.file_stem(), transport)).or_default().insert(quantity, lines);
    }
    let plots = folder.join("plots");
    if !files.is_empty() {
        fs::create_dir_all(&plots).with_context(|| format!("making {}", plots.display()))?;
    }
    remove_stale(&plots, |file| files.keys().any(|(stem, transport)| file == file_name(stem, transport)))?;
    let mut written = Vec::new();
    for ((stem, transport), panels) in files {
        let file = file_name(stem, &transport);
        let svg = draw(&panels, &transport).map_err(|error| anyhow!("drawing {file}: {error}"))?;
        fs::write(plots.join(&file), svg).with_context(|| format!("writing {file}"))?;
        let title = panels.keys().map(|quantity| quantity.title()).collect::<Vec<_>>().join("; ");
        written.push(Plot {
            file: format!("plots/{file}"),
            title: format!("{title} ({})", spoken(&transport)),
            tables: panels.iter().map(|(&quantity, lines)| figures(quantity, lines)).collect(),
        });
    }
    Ok(written)
}

fn file_name(stem: &str, transport: &str) -> String {
    format!("{stem}-{transport}.svg")
}

/// Removes the plots that are not to be kept; other files are nobody's business here.
fn remove_stale(plots: &Path, kept: impl Fn(&str) -> bool) -> Result<()> {
    for entry in fs::read_dir(plots).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(file) = name.to_str().filter(|file| file.ends_with(".svg")) else { continue };
        if (file.starts_with("cost-") || file.starts_with("memory-")) && !kept(file) {
            fs::remove_file(entry.path()).with_context(|| format!("removing {file}"))?;
        }
    }
    Ok(())
}

/// Lines by quantity and transport; of several rounds at one point the median.
fn gather<'a>(samples: impl Iterator<Item = &'a Value>) -> Result<Vec<(Quantity, String, Lines)>> {
    let mut rounds: BTreeMap<(Quantity, String), BTreeMap<String, Rounds>> = BTreeMap::new();
    let mut add = |quantity, transport: &str, subject: &str, readers: f64, value: f64| {
        let lines = rounds.entry((quantity, transport.to_owned())).or_default();
        lines.entry(subject.to_owned()).or_default().entry(readers as u64).or_default().push(value);
    };
    for sample in samples.filter(|sample| sample.get("plot").is_some()) {
        match Sample::deserialize(sample).with_context(|| format!("a sample to plot: {sample}"))? {
            Sample::Cost { subject, transport, readers, us_per_delivery } => {
                add(Quantity::Cost, &transport, &subject, readers, us_per_delivery);
            }
            Sample::Memory { subject, transport, readers, user_bytes, kernel_bytes } => {
                add(Quantity::UserMemory, &transport, &subject, readers, user_bytes);
                if let Some(kernel_bytes) = kernel_bytes {
                    add(Quantity::KernelMemory, &transport, &subject, readers, kernel_bytes);
                }
            }
        }
    }
    let medians = |points: Rounds| -> Line {
        points.into_iter().map(|(readers, values)| (readers as f64, median(values))).collect()
    };
    let lines_of = |lines: BTreeMap<String, Rounds>| -> Lines {
        lines.into_iter().map(|(subject, points)| (subject, medians(points))).collect()
    };
    Ok(rounds
        .into_iter()
        .map(|((quantity, transport), lines)| (quantity, transport, lines_of(lines)))
        .collect())
}

/// Of at least one value.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 }
}

fn spoken(transport: &str) -> &str {
    match transport {
        "ws" => "WebSocket",
        "v1" => "pushline.v1",
        "sse" => "Server-Sent Events",
        other => other,
    }
}

/// The points of a panel as a table: a row for each server, a column for each number of readers.
fn figures(quantity: Quantity, lines: &Lines) -> Table {
    let mut readers: Vec<f64> = lines.values().flatten().map(|&(readers, _)| readers).collect();
    readers.sort_by(f64::total_cmp);
    readers.dedup();
    let mut table = Table::new(quantity.title(), &["server"]);
    table.columns.extend(readers.iter().map(|&readers| thousands(readers)));
    for (subject, line) in by_rank(lines) {
        let cell = |at: &f64| line.iter().find(|(readers, _)| readers == at);
        let cells =
            readers.iter().map(|at| cell(at).map_or("–".to_owned(), |point| quantity.write(point.1)));
        table.rows.push(std::iter::once(subject.clone()).chain(cells).collect());
    }
    table
}

/// The floor first, then from the least last value to the greatest.
fn by_rank(lines: &Lines) -> Vec<(&String, &Line)> {
    let mut ranked: Vec<(&String, &Line)> = lines.iter().collect();
    ranked.sort_by(|a, b| {
        let floors = (!a.0.starts_with("floor")).cmp(&!b.0.starts_with("floor"));
        floors.then(last(a.1).total_cmp(&last(b.1)))
    });
    ranked
}

/// At the greatest number of readers.
fn last(line: &Line) -> f64 {
    line.last().map_or(0.0, |point| point.1)
}

fn thousands(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A colour on white, and the one in its place on black.
struct Shade {
    light: RGBColor,
    dark: RGBColor,
}

const fn shade(light: u32, dark: u32) -> Shade {
    const fn rgb(hex: u32) -> RGBColor {
        RGBColor((hex >> 16) as u8, (hex >> 8) as u8, hex as u8)
    }
    Shade { light: rgb(light), dark: rgb(dark) }
}

const PAPER: Shade = shade(0xffffff, 0x0d1117);
const INK: Shade = shade(0x1f2328, 0xe6edf3);
const PALE_INK: Shade = shade(0x59636e, 0x9198a1);
const GRID: Shade = shade(0xd8dee4, 0x30363d);

#[derive(Clone, Copy)]
enum Mark {
    /// Small: another server's mark is to be seen behind the floor's.
    Dot,
    Circle,
    Square,
    Diamond,
    Up,
    Down,
    Cross,
}

struct Look {
    shade: Shade,
    mark: Mark,
    width_px: u32,
    dashed: bool,
}

/// A server looks the same in every plot; colour, mark and place in the legend each tell it alone.
const LOOKS: [(&str, Look); 9] = [
    ("floor", look(INK, Mark::Dot, 2, true)),
    ("floor-coalescing", look(PALE_INK, Mark::Dot, 2, true)),
    ("pushline", look(shade(0x0969da, 0x4493f8), Mark::Circle, 3, false)),
    ("uwebsockets", look(shade(0xbc4c00, 0xf0883e), Mark::Square, 2, false)),
    ("nchan", look(shade(0x1a7f37, 0x3fb950), Mark::Up, 2, false)),
    ("node-ws", look(shade(0x9a6700, 0xd29922), Mark::Down, 2, false)),
    ("axum", look(shade(0x8250df, 0xab7df8), Mark::Diamond, 2, false)),
    ("nats", look(shade(0x0f7b85, 0x39c5cf), Mark::Cross, 2, false)),
    ("mosquitto", look(shade(0xbf3989, 0xf778ba), Mark::Square, 2, false)),
];
const UNKNOWN: Look = look(shade(0x6e7781, 0x8b949e), Mark::Cross, 2, false);

const fn look(shade: Shade, mark: Mark, width_px: u32, dashed: bool) -> Look {
    Look { shade, mark, width_px, dashed }
}

fn look_of(subject: &str) -> &'static Look {
    LOOKS.iter().find(|(name, _)| *name == subject).map_or(&UNKNOWN, |(_, look)| look)
}

/// Exchanges each light colour for its dark one; a presentation attribute yields to any style.
fn dark_style() -> String {
    let mut rules = String::new();
    let looks = LOOKS.iter().map(|(_, look)| &look.shade).chain([&UNKNOWN.shade]);
    for Shade { light, dark } in looks.chain([&PAPER, &PALE_INK, &GRID]) {
        let hex = |&RGBColor(red, green, blue): &RGBColor| format!("#{red:02X}{green:02X}{blue:02X}");
        for place in ["fill", "stroke"] {
            rules.push_str(&format!("[{place}=\"{}\"]{{{place}:{}}}", hex(light), hex(dark)));
        }
    }
    format!("<style>@media(prefers-color-scheme:dark){{{rules}}}</style>\n")
}

const WIDTH_PX: u32 = 920;
const PANEL_HEIGHT_PX: u32 = 420;
const LEGEND_WIDTH_PX: u32 = 230;
const TITLE_PX: i32 = 17;
const TEXT_PX: i32 = 13;
const READERS: Range<f64> = 1e3..1e6;

type Failed = Box<dyn std::error::Error>;

fn draw(panels: &BTreeMap<Quantity, Lines>, transport: &str) -> Result<String, Failed> {
    let mut svg = String::new();
    {
        let size = (WIDTH_PX, PANEL_HEIGHT_PX * panels.len() as u32);
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        root.fill(&PAPER.light)?;
        for (area, (&quantity, lines)) in root.split_evenly((panels.len(), 1)).iter().zip(panels) {
            draw_panel(area, quantity, lines, transport)?;
        }
        root.present()?;
    }
    let head_end = svg.find('>').ok_or("an SVG has a head")? + 1;
    svg.insert_str(head_end, &format!("\n{}", dark_style()));
    Ok(svg)
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

fn font(size_px: i32, shade: &Shade) -> TextStyle<'static> {
    ("sans-serif", size_px).into_font().color(&shade.light)
}

fn draw_panel(area: &Area, quantity: Quantity, lines: &Lines, transport: &str) -> Result<(), Failed> {
    let title = format!("{} by number of readers, {}", quantity.title(), spoken(transport));
    area.draw(&Text::new(title, (16, 14), font(TITLE_PX, &INK)))?;
    let (left, right) = area.margin(44, 8, 8, 8).split_horizontally(WIDTH_PX - 16 - LEGEND_WIDTH_PX);

    let values = lines.values().flatten().map(|point| point.1);
    let mut chart = ChartBuilder::on(&left)
        .x_label_area_size(46)
        .y_label_area_size(70)
        .build_cartesian_2d(Axis::of_readers(), Axis::of_values(values))?;
    chart
        .configure_mesh()
        .bold_line_style(GRID.light)
        .light_line_style(TRANSPARENT)
        .axis_style(GRID.light)
        .label_style(font(TEXT_PX, &PALE_INK))
        .axis_desc_style(font(TEXT_PX, &PALE_INK))
        .x_desc("readers")
        .x_label_formatter(&|&readers| thousands(readers))
        .y_label_formatter(&|&value| quantity.write_tick(value))
        .draw()?;

    // The best is drawn last, above the others; the floor above all.
    let mut ranked = by_rank(lines);
    for (subject, line) in ranked.iter().rev() {
        let look = look_of(subject);
        let style = ShapeStyle::from(&look.shade.light).stroke_width(look.width_px);
        let points = line.iter().copied();
        if look.dashed {
            chart.draw_series(DashedLineSeries::new(points, 7, 4, style))?;
        } else {
            chart.draw_series(LineSeries::new(points, style))?;
        }
        chart.draw_series(line.iter().map(|&point| mark(point, look)))?;
    }
    // In the legend as the lines lie: the greatest on top.
    ranked.sort_by(|a, b| last(b.1).total_cmp(&last(a.1)));
    draw_legend(&right, quantity, &ranked)
}

fn draw_legend(area: &Area, quantity: Quantity, ranked: &[(&String, &Line)]) -> Result<(), Failed> {
    let middle = Pos::new(HPos::Left, VPos::Center);
    let step = 38.min(340 / ranked.len().max(1) as i32);
    for (at, (subject, line)) in ranked.iter().enumerate() {
        let look = look_of(subject);
        let y = 20 + at as i32 * step;
        let style = ShapeStyle::from(&look.shade.light).stroke_width(look.width_px);
        let gap = if look.dashed { 6 } else { 0 };
        area.draw(&PathElement::new([(14, y), (25 - gap, y)], style))?;
        area.draw(&PathElement::new([(25 + gap, y), (36, y)], style))?;
        area.draw(&mark((25, y), look))?;
        area.draw(&Text::new(subject.replace('-', " "), (46, y), font(TEXT_PX + 1, &INK).pos(middle)))?;
        if let Some(&(readers, value)) = line.last() {
            let said = format!("{} at {}", quantity.write(value), thousands(readers));
            area.draw(&Text::new(said, (46, y + 16), font(TEXT_PX - 1, &PALE_INK).pos(middle)))?;
        }
    }
    Ok(())
}

/// plotters does not export the name of such a sum.
type Marked<'a, Coord> = <EmptyElement<Coord, SVGBackend<'a>> as Add<Polygon<(i32, i32)>>>::Output;

/// A mark of about 9 pixels around a point, on any kind of axes.
fn mark<'a, Coord>(at: Coord, look: &Look) -> Marked<'a, Coord> {
    let corners: &[(i32, i32)] = match look.mark {
        Mark::Dot => &[(0, -3), (3, 0), (0, 3), (-3, 0)],
        Mark::Circle => &[(-2, -5), (2, -5), (5, -2), (5, 2), (2, 5), (-2, 5), (-5, 2), (-5, -2)],
        Mark::Square => &[(-4, -4), (4, -4), (4, 4), (-4, 4)],
        Mark::Diamond => &[(0, -6), (6, 0), (0, 6), (-6, 0)],
        Mark::Up => &[(0, -5), (5, 4), (-5, 4)],
        Mark::Down => &[(0, 5), (5, -4), (-5, -4)],
        Mark::Cross => &CROSS,
    };
    EmptyElement::at(at) + Polygon::new(corners, look.shade.light.filled())
}

const CROSS: [(i32, i32); 12] = [
    (0, -2),
    (3, -5),
    (5, -3),
    (2, 0),
    (5, 3),
    (3, 5),
    (0, 2),
    (-3, 5),
    (-5, 3),
    (-2, 0),
    (-5, -3),
    (-3, -5),
];

/// An axis with round ticks: from zero, or by powers of ten.
#[derive(Debug, Clone)]
struct Axis {
    logarithmic: bool,
    bounds: Range<f64>,
}

/// Greatest to least value from which on the axis is by powers of ten: the others would be pressed together.
const SPREAD_MAX: f64 = 8.0;

impl Axis {
    fn of_readers() -> Self {
        // Room for the marks at either end.
        Self { logarithmic: true, bounds: READERS.start * 0.85..READERS.end * 1.18 }
    }

    fn of_values(values: impl Iterator<Item = f64>) -> Self {
        let (mut least, mut greatest) = (f64::INFINITY, 0.0_f64);
        values.filter(|&value| value > 0.0).for_each(|value| {
            least = least.min(value);
            greatest = greatest.max(value);
        });
        if greatest == 0.0 {
            return Self { logarithmic: false, bounds: 0.0..1.0 };
        }
        if greatest / least < SPREAD_MAX {
            return Self { logarithmic: false, bounds: 0.0..greatest * 1.12 };
        }
        Self { logarithmic: true, bounds: least * 0.7..greatest * 1.4 }
    }

    /// Round values: 1, 2 and 5 of each power of ten, or some five steps of such a width.
    fn ticks(&self) -> Vec<f64> {
        let Range { start, end } = self.bounds;
        if self.logarithmic {
            let powers = start.log10().floor() as i32..=end.log10().ceil() as i32;
            // Beyond three powers only these are marked.
            let of_each: &[f64] = if end / start >= 1e3 { &[1.0] } else { &[1.0, 2.0, 5.0] };
            let all =
                powers.flat_map(|power| of_each.iter().map(move |one| rounded(one * 10_f64.powi(power))));
            return all.filter(|value| self.bounds.contains(value)).collect();
        }
        let power = 10_f64.powf((end / 5.0).log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|one| one * power).into_iter().find(|step| end / step <= 6.0);
        let step = step.unwrap_or(end);
        (0..=(end / step) as i32).map(|at| rounded(f64::from(at) * step)).collect()
    }
}

/// 0.3 and not 0.30000000000000004.
fn rounded(value: f64) -> f64 {
    (value * 1e6).round() / 1e6
}

impl Ranged for Axis {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        let Range { start, end } = self.bounds;
        let part = if self.logarithmic {
            // Nothing lies on the ground: its logarithm would lie nowhere.
            (value.max(start) / start).ln() / (end / start).ln()
        } else {
            (value - start) / (end - start)
        };
        limit.0 + (part * f64::from(limit.1 - limit.0)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _hint: Hint) -> Vec<f64> {
        self.ticks()
    }

    fn range(&self) -> Range<f64> {
        self.bounds.clone()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rounds_at_one_point_are_their_median() {
        let cost = |readers: u32, us: f64| json!({"plot":"cost","subject":"floor","transport":"ws","readers":readers,"us_per_delivery":us});
        let samples = [
            cost(1_000, 9.0),
            cost(10_000, 10.0),
            cost(1_000, 8.0),
            cost(1_000, 30.0),
            json!({"label":"ws"}),
        ];
        let gathered = gather(samples.iter()).unwrap();
        let (quantity, transport, lines) = &gathered[0];
        assert_eq!((*quantity, transport.as_str(), gathered.len()), (Quantity::Cost, "ws", 1));
        assert_eq!(lines["floor"], [(1e3, 9.0), (1e4, 10.0)]);
    }

    #[test]
    fn one_size_makes_no_plot_and_an_old_one_goes() {
        let folder = std::env::temp_dir().join(format!("pushline-bench-plots-{}", std::process::id()));
        let plots = folder.join("plots");
        fs::create_dir_all(&plots).unwrap();
        for file in ["cost-v1.svg", "memory-ws.svg", "mine.svg"] {
            fs::write(plots.join(file), "").unwrap();
        }
        let mut samples = Vec::new();
        for (transport, sizes) in [("ws", &[1_000, 5_000][..]), ("sse", &[1_000, 5_000]), ("v1", &[1_000])] {
            for readers in sizes {
                samples
                    .push(json!({"plot":"cost","subject":"pushline","transport":transport,"readers":readers,
                    "us_per_delivery":9.0}));
                samples.push(
                    json!({"plot":"memory","subject":"pushline","transport":transport,"readers":readers,
                    "user_bytes":200.0,"kernel_bytes":4e3}),
                );
            }
        }
        let drawn = write_plots(&folder, samples.iter()).unwrap();
        let drawn: Vec<&str> = drawn.iter().map(|plot| plot.file.as_str()).collect();
        let names = ["cost-sse.svg", "cost-ws.svg", "memory-sse.svg", "memory-ws.svg"];
        assert_eq!(drawn, names.map(|name| format!("plots/{name}")));
        let mut there: Vec<_> =
            fs::read_dir(&plots).unwrap().flatten().map(|entry| entry.file_name()).collect();
        there.sort();
        assert_eq!(there, [&names[..], &["mine.svg"]].concat());
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_sample_of_the_wrong_form_is_told() {
        let sample = json!({"plot":"cost","subject":"floor","readers":1});
        assert!(gather([sample].iter()).is_err());
    }

    #[test]
    fn ticks_are_round_and_within() {
        for (name, values, want) in [
            ("from zero", vec![9.0, 20.5], vec![0.0, 5.0, 10.0, 15.0, 20.0]),
            ("small", vec![0.5, 0.25], vec![0.0, 0.1, 0.2, 0.3, 0.4, 0.5]),
            ("by powers", vec![100.0, 2_000.0], vec![100.0, 200.0, 500.0, 1_000.0, 2_000.0]),
            ("by many powers", vec![80.0, 134_000.0], vec![100.0, 1_000.0, 10_000.0, 100_000.0]),
        ] {
            let ticks = Axis::of_values(values.into_iter()).ticks();
            assert_eq!(ticks, want, "{name}");
        }
    }

    /// plotters writes colours as the style expects them, or dark mode would be black on black.
    #[test]
    fn every_colour_has_its_dark_one() {
        let lines = Lines::from([
            ("floor".to_owned(), vec![(1e3, 9.0)]),
            ("axum".to_owned(), vec![(1e4, 20.0), (1e5, 21.0)]),
        ]);
        let svg = draw(&BTreeMap::from([(Quantity::Cost, lines)]), "ws").unwrap();
        let (style, body) = svg.split_once("</style>").unwrap();
        for place in ["fill=\"#", "stroke=\"#"] {
            for (at, _) in body.match_indices(place) {
                let attribute = &body[at..at + place.len() + 7];
                assert!(style.contains(&format!("[{attribute}]")), "{attribute}");
            }
        }
        assert!(body.contains("1,000,000") && body.contains("21.0 µs") && !body.contains("NaN"));
    }
}
