//! Tables as kubectl prints them: capitals above, two spaces between, no lines.

use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

use super::Terminal;

/// A column that shrinks keeps at least so much.
const NARROWEST: usize = 8;
const GAP: usize = 2;

/// Rows below a header.
#[derive(Clone, Debug)]
pub struct Table {
    /// The columns, left to right.
    pub columns: Vec<Column>,
    /// One cell for each column.
    pub rows: Vec<Vec<Cell>>,
}

/// What is common to the cells of a column.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    /// In capitals.
    pub name: &'static str,
    /// To which side the cells are put.
    pub align: Align,
    /// Whether its cells may be cut where the terminal is too narrow.
    pub shrinks: bool,
}

/// To which side text is put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    /// Text.
    Left,
    /// Numbers.
    Right,
}

/// One cell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cell {
    text: String,
    paint: Paint,
}

/// The colour of a cell. It repeats what the text says, and is never all there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Paint {
    /// As the terminal has it.
    Plain,
    /// Look at this soon.
    Yellow,
    /// Look at this.
    Red,
}

impl Cell {
    /// A cell in the terminal's own colour. Control characters, which the name of a process may
    /// hold, are replaced.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self { text: printable(text), paint: Paint::Plain }
    }

    /// A cell for something that is not known.
    #[must_use]
    pub fn missing() -> Self {
        Self::new("-")
    }

    /// The text alone, in its colour where there are colours.
    #[must_use]
    pub fn inline(&self, terminal: &Terminal) -> String {
        self.paint.apply(&self.text, terminal.color)
    }

    /// The same in a colour.
    #[must_use]
    pub fn painted(self, paint: Paint) -> Self {
        Self { paint, ..self }
    }
}

/// The text without characters that could move the cursor or turn around what follows: control
/// characters, and those for bidirectional text (Unicode Annex 9), are replaced.
#[must_use]
pub fn printable(text: &str) -> String {
    let moves = |c: char| {
        c.is_control()
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars().map(|c| if moves(c) { '\u{fffd}' } else { c }).collect()
}

impl Table {
    /// Header and rows as lines. On a terminal they are cut to its width where that is possible.
    #[must_use]
    pub fn render(&self, terminal: &Terminal) -> String {
        let names: Vec<_> = self.columns.iter().map(|column| Cell::new(column.name)).collect();
        let widths = self.widths(terminal, true);
        let rows = std::iter::once(&names).chain(&self.rows);
        rows.map(|row| self.line(row, &widths, terminal.color)).collect()
    }

    /// As `render`, without the header.
    #[must_use]
    pub fn render_rows(&self, terminal: &Terminal) -> String {
        let widths = self.widths(terminal, false);
        self.rows.iter().map(|row| self.line(row, &widths, terminal.color)).collect()
    }

    fn widths(&self, terminal: &Terminal, with_names: bool) -> Vec<usize> {
        let widest = |(index, column): (usize, &Column)| {
            let name = if with_names { column.name.width() } else { 0 };
            self.rows.iter().map(|row| row[index].text.width()).fold(name, usize::max)
        };
        let mut widths: Vec<_> = self.columns.iter().enumerate().map(widest).collect();
        if let Some((columns, _)) = terminal.size {
            self.shrink(&mut widths, columns);
        }
        widths
    }

    /// Takes from the widest column that shrinks, until all fit or none has anything to give.
    fn shrink(&self, widths: &mut [usize], columns: usize) {
        let gaps = GAP * widths.len().saturating_sub(1);
        while columns < gaps + widths.iter().sum::<usize>() {
            let shrinking = widths.iter_mut().zip(&self.columns);
            let widest = shrinking
                .filter(|(width, column)| column.shrinks && NARROWEST < **width)
                .max_by_key(|(width, _)| **width);
            match widest {
                Some((width, _)) => *width -= 1,
                None => break,
            }
        }
    }

    fn line(&self, row: &[Cell], widths: &[usize], color: bool) -> String {
        let mut line = String::new();
        // Spaces are written when something follows, so no line ends with them.
        let mut spaces = 0;
        for ((cell, &width), column) in row.iter().zip(widths).zip(&self.columns) {
            let text = cut(&cell.text, width);
            let rest = width.saturating_sub(text.width());
            let (before, after) = match column.align {
                Align::Left => (0, rest),
                Align::Right => (rest, 0),
            };
            if !text.is_empty() {
                line.extend(std::iter::repeat_n(' ', spaces + before));
                line.push_str(&cell.paint.apply(&text, color));
                spaces = 0;
            }
            spaces += if text.is_empty() { width + GAP } else { after + GAP };
        }
        line + "\n"
    }
}

impl Paint {
    fn apply(self, text: &str, color: bool) -> String {
        match self {
            Self::Red if color => format!("\x1b[31m{text}\x1b[0m"),
            Self::Yellow if color => format!("\x1b[33m{text}\x1b[0m"),
            Self::Plain | Self::Red | Self::Yellow => text.into(),
        }
    }
}

/// Cuts in the middle, since both ends matter: a host and its port, a name and its pid.
fn cut(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.into();
    }
    let tail_width = width.saturating_sub(1) / 2;
    let head = take(text.chars(), width.saturating_sub(1 + tail_width));
    let tail: Vec<char> = take(text.chars().rev(), tail_width);
    head.into_iter().chain(['…']).chain(tail.into_iter().rev()).collect()
}

/// As many characters as fit.
fn take(chars: impl Iterator<Item = char>, width: usize) -> Vec<char> {
    let mut left = width;
    let fits = |c: &char| {
        let rest = left.checked_sub(c.width().unwrap_or(0));
        left = rest.unwrap_or(left);
        rest.is_some()
    };
    chars.take_while(fits).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let column = |name, align, shrinks| Column { name, align, shrinks };
        let row = |cells: [&str; 4]| cells.map(Cell::new).into();
        Table {
            columns: vec![
                column("ADDRESS", Align::Left, true),
                column("PROCESS", Align::Left, true),
                column("DROPS", Align::Right, false),
                column("STATE", Align::Left, false),
            ],
            rows: vec![
                row(["[2001:db8:0:1:2:3:4:5]:8443", "nginx/1234 +8", "0", "ok"]),
                row(["*:80", "größer\x1b[31m日本/7", "123456", ""]),
                row(["127.0.0.1:5432", "-", "-", "FULL,STALLED"]),
            ],
        }
    }

    const PIPE: Terminal = Terminal { size: None, color: false, redraws: false };

    #[test]
    fn into_a_pipe_a_table_is_as_wide_as_its_cells() {
        insta::assert_snapshot!(table().render(&PIPE));
    }

    #[test]
    fn on_a_narrow_terminal_long_cells_are_cut_in_the_middle() {
        let narrow = Terminal { size: Some((48, 24)), ..PIPE };
        let text = table().render(&narrow);
        assert!(text.lines().all(|line| line.width() <= 48), "{text}");
        insta::assert_snapshot!(text);
    }

    #[test]
    fn where_nothing_can_be_cut_lines_are_longer() {
        let narrow = Terminal { size: Some((10, 24)), ..PIPE };
        insta::assert_snapshot!(table().render_rows(&narrow));
    }

    #[test]
    fn colour_surrounds_the_word_and_moves_nothing() {
        let mut table = table();
        table.rows.drain(..2);
        let red = table.rows[0].remove(3).painted(Paint::Red);
        table.rows[0].push(red);
        let color = Terminal { color: true, ..PIPE };
        let painted = table.render_rows(&color);
        assert!(painted.ends_with("\x1b[31mFULL,STALLED\x1b[0m\n"), "{painted:?}");
        let stripped = painted.replace("\x1b[31m", "").replace("\x1b[0m", "");
        assert_eq!(stripped, table.render_rows(&PIPE));
    }
}
