//! Text for people, broken between words.

use unicode_width::UnicodeWidthStr as _;

use super::Terminal;

/// No text is broken to less than this.
const NARROWEST: usize = 30;

/// The text after `head`, in lines that fit the terminal; further lines are as far from the left as the
/// first. Control characters are replaced.
#[must_use]
pub fn wrap(head: &str, text: &str, terminal: &Terminal) -> String {
    let indent = head.width();
    let width = match terminal.size {
        Some((columns, _)) => columns.saturating_sub(indent).max(NARROWEST),
        None => usize::MAX,
    };
    let mut out = head.to_owned();
    let mut at = 0;
    for word in super::printable(text).split(' ') {
        let n = word.width();
        if 0 < at && width < at + 1 + n {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', indent));
            at = 0;
        } else if 0 < at {
            out.push(' ');
            at += 1;
        }
        out.push_str(word);
        at += n;
    }
    out.push('\n');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(columns: Option<usize>, text: &str, expected: &str) {
        let size = columns.map(|columns| (columns, 24));
        let terminal = Terminal { size, color: false, redraws: false };
        assert_eq!(expected, wrap("  why  ", text, &terminal));
    }

    #[test]
    fn lines_break_between_words_and_stay_in_their_column() {
        check(None, "one two three", "  why  one two three\n");
        check(
            Some(40),
            "clients wait for a program that looks alive",
            "  why  clients wait for a program that\n       looks alive\n",
        );
        check(Some(40), &"x".repeat(40), &format!("  why  {}\n", "x".repeat(40)));
        check(Some(5), "a \u{1b}[31mb", "  why  a \u{fffd}[31mb\n");
    }
}
