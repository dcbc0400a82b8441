//! Curves as a drawing.

use super::{Curve, Point};
use crate::quantity::Bytes;
use std::fmt::Write;

/// The drawing and its margins, in pixels.
const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 52.0;
const BELOW: f64 = 46.0;

/// Classes of the lines, in turn.
const LINES: usize = 5;

const STYLE: &str = "svg{background:#fff;color:#1b1f27;font:13px system-ui,sans-serif}\
.grid{stroke:#d9dde4}.soft{fill:#5d6675}text{fill:currentColor}path{fill:none;stroke-width:2}\
.l0{stroke:#2b6fd0}.l1{stroke:#d9822b}.l2{stroke:#4f9d69}.l3{stroke:#b8327a}.l4{stroke:#8392a8}circle{stroke-width:2;fill:#fff}\
@media(prefers-color-scheme:dark){svg{background:#1a1d23;color:#e7eaf0}.grid{stroke:#333944}.soft{fill:#9aa4b4}circle{fill:#1a1d23}}";

/// The scales of both axes: bytes, and a step's time as a multiple of the fastest.
struct Scale {
    bytes: (f64, f64),
    most: f64,
}

impl Scale {
    fn of(curves: &[Curve]) -> Self {
        let budgets = || curves.iter().flat_map(|c| &c.points).map(|p| p.budget.0 as f64);
        let (low, high) = (budgets().fold(f64::INFINITY, f64::min), budgets().fold(0.0, f64::max));
        let most = curves.iter().flat_map(|c| c.points.iter().map(|p| relative(c, p))).fold(1.0, f64::max);
        Scale { bytes: (low, high.max(low + 1.0)), most: 1.0 + (most - 1.0).max(0.01) * 1.1 }
    }

    fn x(&self, bytes: f64) -> f64 {
        LEFT + (WIDTH - LEFT - RIGHT) * (bytes - self.bytes.0) / (self.bytes.1 - self.bytes.0)
    }

    fn y(&self, relative: f64) -> f64 {
        TOP + (HEIGHT - TOP - BELOW) * (1.0 - (relative - 1.0) / (self.most - 1.0))
    }
}

/// A step's time as a multiple of the one with everything kept.
fn relative(curve: &Curve, point: &Point) -> f64 {
    point.step.0 / curve.points.last().map_or(point.step.0, |p| p.step.0).max(1e-300)
}

/// Draws how much longer a step takes with less memory, a line for each target.
pub fn svg(model: &str, curves: &[Curve]) -> String {
    let scale = Scale::of(curves);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" role=\"img\">\n\
         <!-- fp8c curve -->\n<style>{STYLE}</style>\n<title>Predicted time of a step of {0} against its budget</title>\n\
         <text x=\"{LEFT}\" y=\"22\" font-size=\"16\">{0}: predicted time of a step against the budget</text>\n",
        escaped(model)
    );
    axes(&mut out, &scale);
    for (i, curve) in curves.iter().enumerate() {
        line(&mut out, &scale, curve, i);
    }
    out + "</svg>\n"
}

fn axes(out: &mut String, scale: &Scale) {
    let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BELOW);
    let step = step(scale.most - 1.0);
    for i in 0..=((scale.most - 1.0) / step) as u32 {
        let (over, y) = (i as f64 * step, scale.y(1.0 + i as f64 * step));
        let _ = writeln!(out, "<path class=\"grid\" d=\"M{LEFT} {y:.1}H{right}\" stroke-width=\"1\"/>");
        let label = format!("+{}%", (over * 1e4).round() / 1e2);
        let _ = writeln!(out, "<text class=\"soft\" x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>", LEFT - 8.0, y + 4.0);
    }
    for i in 0..=4 {
        let bytes = scale.bytes.0 + (scale.bytes.1 - scale.bytes.0) * i as f64 / 4.0;
        let anchor = ["start", "middle", "middle", "middle", "end"][i];
        let shown = Bytes(bytes as u64);
        let _ = writeln!(
            out,
            "<text class=\"soft\" x=\"{:.1}\" y=\"{}\" text-anchor=\"{anchor}\">{shown}</text>",
            scale.x(bytes),
            bottom + 20.0
        );
    }
    let _ = writeln!(out, "<text class=\"soft\" x=\"{right}\" y=\"{}\" text-anchor=\"end\">budget</text>", HEIGHT - 8.0);
}

fn line(out: &mut String, scale: &Scale, curve: &Curve, i: usize) {
    let at: Vec<(f64, f64)> = curve.points.iter().map(|p| (scale.x(p.budget.0 as f64), scale.y(relative(curve, p)))).collect();
    let path: Vec<String> = at.iter().map(|(x, y)| format!("{x:.1} {y:.1}")).collect();
    let class = i % LINES;
    let _ = writeln!(out, "<path class=\"l{class}\" d=\"M{}\"/>", path.join("L"));
    for ((x, y), p) in at.iter().zip(&curve.points) {
        let _ = writeln!(
            out,
            "<circle class=\"l{class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\"><title>{}: {:.4} s</title></circle>",
            p.budget, p.step.0
        );
    }
    let kept = curve.points.last().map_or(0.0, |p| p.step.0);
    let (x, y) = (WIDTH - RIGHT - 250.0, TOP + 6.0 + 20.0 * i as f64);
    let _ = writeln!(out, "<path class=\"l{class}\" d=\"M{x} {y}h22\"/>");
    let _ = writeln!(out, "<text x=\"{}\" y=\"{}\">{}: {kept:.4} s with everything kept</text>", x + 30.0, y + 4.0, escaped(&curve.target));
}

/// The distance of lines in a grid of some four to eight.
fn step(span: f64) -> f64 {
    let power = 10f64.powf((span / 5.0).log10().floor());
    [1.0, 2.0, 5.0, 10.0].map(|m| m * power).into_iter().find(|&s| s >= span / 5.0 * (1.0 - 1e-9)).unwrap_or(10.0 * power)
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quantity::Seconds;

    fn curve(times: &[f64]) -> Curve {
        let point = |(i, &s): (usize, &f64)| Point {
            budget: Bytes(1 << (20 + i)),
            planned: Bytes(1 << 20),
            step: Seconds(s),
            again: Seconds(0.0),
            bound: Seconds(s),
        };
        Curve { target: "cpu".into(), points: times.iter().enumerate().map(point).collect() }
    }

    #[test]
    fn times_are_drawn_as_multiples_of_the_one_that_keeps_everything() {
        let curves = [curve(&[1.5, 1.2, 1.0])];
        let scale = Scale::of(&curves);
        assert!((scale.most - 1.55).abs() < 1e-9);
        let drawn = svg("a<b", &curves);
        assert!(drawn.contains("a&lt;b") && drawn.contains("1.0000 s with everything kept") && drawn.contains("+20%"), "{drawn}");
        assert_eq!(drawn.matches("<circle").count(), 3);
    }

    #[test]
    fn one_point_is_a_drawing_too() {
        assert!(!svg("m", &[curve(&[1.0])]).contains("NaN"));
        assert_eq!([step(0.5), step(1.0), step(0.011)], [0.1, 0.2, 0.005]);
    }
}
