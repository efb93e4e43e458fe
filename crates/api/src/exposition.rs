//! Prometheus' text format (version 0.0.4): metrics that are written down one after the other.

use std::fmt::{Display, Write};

/// A text that grows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Exposition {
    labels: String,
    text: String,
}

/// One histogram of a family.
#[derive(Debug, Clone, PartialEq)]
pub struct Histogram {
    /// What tells it from the others, as [`label`] has it.
    pub label: String,
    /// Upper bounds, and how many are not above each; the last bound is `+Inf`.
    pub counts: Vec<(String, u64)>,
    /// The sum of all that was observed.
    pub sum: f64,
}

impl Exposition {
    /// An empty one; each line to come has these labels, as [`label`] has them, with commas between
    /// them, or none.
    #[must_use]
    pub fn new(labels: String) -> Exposition {
        Exposition { labels, text: String::new() }
    }

    /// What was written.
    #[must_use]
    pub fn into_text(self) -> String {
        self.text
    }

    /// A gauge that is 0 or 1.
    pub fn flag(&mut self, name: &str, help: &str, value: bool) {
        self.gauge(name, help, u8::from(value));
    }

    /// A gauge.
    pub fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.family(name, "gauge", help, [(String::new(), value)]);
    }

    /// A counter.
    pub fn counter(&mut self, name: &str, help: &str, value: impl Display) {
        self.family(name, "counter", help, [(String::new(), value)]);
    }

    /// One metric with further labels in each line.
    pub fn family(
        &mut self,
        name: &str,
        kind: &str,
        help: &str,
        lines: impl IntoIterator<Item = (String, impl Display)>,
    ) {
        self.line(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}"));
        for (label, value) in lines {
            let labels = braced(&[&self.labels, &label]);
            self.line(format_args!("{name}{labels} {value}"));
        }
    }

    /// Histograms of one name.
    pub fn histograms(
        &mut self,
        name: &str,
        help: &str,
        histograms: impl IntoIterator<Item = Histogram>,
    ) {
        self.line(format_args!("# HELP {name} {help}\n# TYPE {name} histogram"));
        for Histogram { label, counts, sum } in histograms {
            let all = counts.last().map_or(0, |(_, count)| *count);
            for (bound, count) in counts {
                let labels = braced(&[&self.labels, &label, &format!("le=\"{bound}\"")]);
                self.line(format_args!("{name}_bucket{labels} {count}"));
            }
            let labels = braced(&[&self.labels, &label]);
            self.line(format_args!("{name}_sum{labels} {sum}\n{name}_count{labels} {all}"));
        }
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        writeln!(self.text, "{line}").expect("a String takes every write");
    }
}

/// One label as it stands between braces.
#[must_use]
pub fn label(name: &str, value: &str) -> String {
    let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    format!("{name}=\"{value}\"")
}

/// All labels in their braces, if there are any.
fn braced(labels: &[&str]) -> String {
    let labels: Vec<&str> = labels.iter().copied().filter(|label| !label.is_empty()).collect();
    if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped_and_no_braces_stand_empty() {
        let mut out = Exposition::default();
        out.flag("a", "One.", true);
        let odd = label("user", "a\\b\"c\nd");
        out.family("b", "counter", "Two.", [(odd, 3), (String::new(), 4)]);
        let expected = "# HELP a One.\n# TYPE a gauge\na 1\n# HELP b Two.\n# TYPE b counter\n\
                        b{user=\"a\\\\b\\\"c\\nd\"} 3\nb 4\n";
        assert_eq!(out.into_text(), expected);
    }

    #[test]
    fn a_histogram_ends_with_its_sum_and_its_count() {
        let mut out = Exposition::new(label("x", "y"));
        let counts = vec![("0.5".to_owned(), 1), ("+Inf".to_owned(), 3)];
        out.histograms("h", "Help.", [Histogram { label: label("p", "q"), counts, sum: 7.5 }]);
        let text = out.into_text();
        let lines: Vec<&str> = text.lines().skip(2).collect();
        let expected = [
            r#"h_bucket{x="y",p="q",le="0.5"} 1"#,
            r#"h_bucket{x="y",p="q",le="+Inf"} 3"#,
            r#"h_sum{x="y",p="q"} 7.5"#,
            r#"h_count{x="y",p="q"} 3"#,
        ];
        assert_eq!(lines, expected);
    }
}
