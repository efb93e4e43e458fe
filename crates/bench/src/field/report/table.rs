//! A table, as HTML and as Markdown.

/// One row.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Line {
    cells: Vec<Cell>,
    ours: bool,
}

#[derive(Debug, Clone, PartialEq)]
struct Cell {
    text: String,
    bad: bool,
}

impl Line {
    /// A row that begins with this; `ours` is shown as such.
    pub(super) fn new(name: String, ours: bool) -> Line {
        Line { cells: vec![Cell { text: name, bad: false }], ours }
    }

    pub(super) fn cell(mut self, text: String) -> Line {
        self.cells.push(Cell { text, bad: false });
        self
    }

    /// How many of what there should be none of.
    pub(super) fn faults(self, count: usize) -> Line {
        if count > 0 { self.fault(count.to_string()) } else { self.cell("0".to_owned()) }
    }

    /// What should not be.
    pub(super) fn fault(mut self, text: String) -> Line {
        self.cells.push(Cell { text, bad: true });
        self
    }
}

/// All rows under their header.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Table {
    pub(super) header: Vec<String>,
    pub(super) lines: Vec<Line>,
}

impl Table {
    pub(super) fn new(header: &[&str], lines: Vec<Line>) -> Table {
        Table { header: header.iter().map(|name| (*name).to_owned()).collect(), lines }
    }

    pub(super) fn html(&self) -> String {
        let header: String =
            self.header.iter().map(|name| format!("<th>{}</th>", escaped(name))).collect();
        let mut text = format!("<table><tr>{header}</tr>\n");
        for Line { cells, ours } in &self.lines {
            let class = if *ours { " class=\"ours\"" } else { "" };
            let cell = |Cell { text, bad }: &Cell| {
                let class = if *bad { " class=\"bad\"" } else { "" };
                format!("<td{class}>{}</td>", escaped(text))
            };
            let cells: String = cells.iter().map(cell).collect();
            text.push_str(&format!("<tr{class}>{cells}</tr>\n"));
        }
        text.push_str("</table>\n");
        text
    }

    pub(super) fn markdown(&self) -> String {
        let row = |cells: Vec<&str>| format!("| {} |\n", cells.join(" | "));
        let mut text = row(self.header.iter().map(String::as_str).collect());
        text.push_str(&format!("|{}\n", "---|".repeat(self.header.len())));
        for Line { cells, .. } in &self.lines {
            text.push_str(&row(cells.iter().map(|cell| cell.text.as_str()).collect()));
        }
        text
    }
}

pub(super) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_says_the_same_in_both_languages() {
        let line = Line::new("a & b".to_owned(), true).cell("1.5".to_owned()).faults(2);
        let table = Table::new(&["name", "s", "lost"], vec![line]);
        assert_eq!(
            table.html(),
            "<table><tr><th>name</th><th>s</th><th>lost</th></tr>\n<tr class=\"ours\">\
             <td>a &amp; b</td><td>1.5</td><td class=\"bad\">2</td></tr>\n</table>\n"
        );
        assert_eq!(table.markdown(), "| name | s | lost |\n|---|---|---|\n| a & b | 1.5 | 2 |\n");
    }
}
