//! Text in columns, each as wide as its widest cell.

/// Rows of cells under heads.
#[derive(Debug)]
pub(super) struct Columns(Vec<Vec<String>>);

impl Columns {
    pub(super) fn new(heads: &[&str]) -> Self {
        Self(vec![heads.iter().map(|&head| head.to_owned()).collect()])
    }

    /// Adds a row of as many cells as there are heads.
    pub(super) fn add(&mut self, cells: Vec<String>) {
        self.0.push(cells);
    }

    /// Writes the rows, each behind `indent`, without blanks at the end of a line.
    pub(super) fn write(&self, text: &mut String, indent: &str) {
        let columns = self.0.first().map_or(0, Vec::len);
        let width =
            |column: usize| self.0.iter().filter_map(|row| row.get(column)).map(|c| c.chars().count()).max();
        let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
        for row in &self.0 {
            let mut line = indent.to_owned();
            for (cell, width) in row.iter().zip(&widths) {
                line.push_str(&format!("{cell:width$}  "));
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut columns = Columns::new(&["A", "LONG", "C"]);
        columns.add(vec!["wider".into(), "x".into(), String::new()]);
        let mut text = String::new();
        columns.write(&mut text, "  ");
        assert_eq!(text, "  A      LONG  C\n  wider  x\n");
    }
}
