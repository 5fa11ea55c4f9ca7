//! Text that a shell takes as it stands: commands, and what has to be said beside them as a comment.

/// A word, in quotes where the shell would make something else of it.
#[must_use]
pub fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_@%+=:,./-".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// `command`, and after it what else there is to do or to know; either may be empty.
#[must_use]
pub fn noted(command: &str, note: &str) -> String {
    // the names of programs may hold line ends, and after one the shell would read on
    let note = note.replace(|c: char| c.is_control(), " ");
    match (command, &*note) {
        (command, "") => command.to_owned(),
        ("", note) => format!("# {note}"),
        (command, note) => format!("{command} # {note}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_one_word_to_the_shell() {
        #[track_caller]
        fn check(word: &str, expected: &str) {
            assert_eq!(expected, quoted(word));
        }
        check("nginx.service", "nginx.service");
        check("10.0.0.9:5432", "10.0.0.9:5432");
        check("[2001:db8::1]:443", "'[2001:db8::1]:443'");
        check(r"fsck@by\x2duuid.service", r"'fsck@by\x2duuid.service'");
        check("it's; reboot", r"'it'\''s; reboot'");
        check("", "''");
    }

    #[test]
    fn what_is_no_command_is_a_comment() {
        #[track_caller]
        fn check(command: &str, note: &str, expected: &str) {
            assert_eq!(expected, noted(command, note));
        }
        check("ss -ltn", "", "ss -ltn");
        check("", "restart it", "# restart it");
        check("ss -ltn", "then restart it", "ss -ltn # then restart it");
        check("# restart it", "soon", "# restart it # soon");
        check("ss -ltn # all", "of them", "ss -ltn # all # of them");
        check("", "restart x\nreboot", "# restart x reboot");
    }
}
