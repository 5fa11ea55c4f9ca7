//! From a recording to snapshots.

use std::io::{self, BufRead, BufReader, Read};

use flate2::bufread::GzDecoder;
use serde::Deserialize;
use serde_json::Number;

use super::{
    Header, LONGEST_CHANGES, LONGEST_LINE, Limit, MOST_SNAPSHOTS, Place, RecordingError, VERSION,
    from_file,
    state::{Kind, State, StateError},
};
use crate::{model::snapshot::Snapshot, time::Monotonic};

/// Longest header, in bytes.
const LONGEST_HEADER: usize = 64 << 10;
/// What a gzip file begins with (RFC 1952, 2.3.1).
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// A recording of which the header is read.
pub struct Recording<R: BufRead> {
    lines: Lines<R>,
    header: Header,
}

impl<R: BufRead> Recording<R> {
    /// Reads the header.
    ///
    /// # Errors
    /// When this is no recording, or a newer one; and those of `from`.
    pub fn open(mut from: R) -> Result<Self, RecordingError> {
        let at = Place::default();
        let first = from.fill_buf().map_err(|source| RecordingError::Read { at, source })?;
        let first = &first[..first.len().min(GZIP.len())];
        if first != GZIP {
            let got = match first {
                [] => "an empty file".into(),
                bytes => format!("a file that begins with the bytes {bytes:02x?}"),
            };
            return Err(RecordingError::NotARecording { got });
        }
        let mut lines = Lines { from: BufReader::new(GzDecoder::new(from)), line: Vec::new() };
        let header = match lines.next(LONGEST_HEADER, at) {
            Ok(Some(line)) => header(line)?,
            Ok(None) => return Err(RecordingError::Cut(at)),
            Err(RecordingError::TooLarge { .. }) => {
                let got = format!("a first line of more than {LONGEST_HEADER} bytes");
                return Err(RecordingError::NotARecording { got });
            }
            Err(err) => return Err(err),
        };
        Ok(Self { lines, header })
    }

    /// What its first line says.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Its snapshots, in order. After an error there are no more.
    #[must_use]
    pub fn snapshots(self) -> Snapshots<R> {
        Snapshots {
            lines: Some(self.lines),
            state: None,
            changes: 0,
            newest: None,
            place: Place::default(),
        }
    }
}

/// Looks at the version before anything else.
fn header(line: &[u8]) -> Result<Header, RecordingError> {
    #[derive(Deserialize)]
    struct Version {
        backlogd_recording: Number,
        #[serde(default)]
        agent: String,
    }
    let not = |_| RecordingError::NotARecording { got: "a first line that is no header".into() };
    let Version { backlogd_recording: version, agent } =
        serde_json::from_slice(line).map_err(not)?;
    match version.as_u64() {
        None | Some(0) => Err(RecordingError::NoVersion { version }),
        Some(newer) if u64::from(VERSION) < newer => {
            // it came from outside
            let agent = agent.chars().filter(|c| !c.is_control()).take(40).collect();
            Err(RecordingError::Newer { version: newer, agent })
        }
        Some(_) => serde_json::from_slice(line).map_err(not),
    }
}

/// The snapshots of a recording.
pub struct Snapshots<R: BufRead> {
    /// `None` after the end.
    lines: Option<Lines<R>>,
    state: Option<State>,
    /// Bytes of changes since the newest whole snapshot.
    changes: usize,
    /// Time of the newest.
    newest: Option<Monotonic>,
    place: Place,
}

impl<R: BufRead> Iterator for Snapshots<R> {
    type Item = Result<Snapshot, RecordingError>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = self.advance().transpose();
        if !matches!(next, Some(Ok(_))) {
            self.lines = None;
        }
        next
    }
}

impl<R: BufRead> Snapshots<R> {
    /// How far it was read.
    #[must_use]
    pub fn place(&self) -> Place {
        self.place
    }

    fn advance(&mut self) -> Result<Option<Snapshot>, RecordingError> {
        let at = self.place;
        let Some(lines) = &mut self.lines else { return Ok(None) };
        let Some(line) = lines.next(LONGEST_LINE, at)? else { return Ok(None) };
        let length = line.len();
        let too_large = |limit| RecordingError::TooLarge { at, limit };
        if MOST_SNAPSHOTS <= at.snapshots {
            return Err(too_large(Limit::Snapshots));
        }
        let refused = |err| match err {
            StateError::TooManyListeners => too_large(Limit::Listeners),
            StateError::Delta(_) | StateError::Form(_) | StateError::NothingToChange => {
                RecordingError::Damaged { at, got: err.to_string() }
            }
        };
        match State::read(&mut self.state, line).map_err(refused)? {
            Kind::Whole => self.changes = 0,
            Kind::Delta => self.changes += length,
        }
        if LONGEST_CHANGES < self.changes {
            return Err(too_large(Limit::Changes));
        }
        let Some(snapshot) = self.state.as_ref().map(|it| from_file(it.snapshot())) else {
            return Ok(None);
        };
        let before = self.newest.unwrap_or(snapshot.at);
        if snapshot.at < before {
            let got = "its clock goes back, which no clock since boot does".into();
            return Err(RecordingError::Damaged { at, got });
        }
        self.newest = Some(snapshot.at);
        self.place.snapshots += 1;
        self.place.time = self.place.time + (snapshot.at - before);
        Ok(Some(snapshot))
    }
}

/// Lines that end where the file does.
struct Lines<R: BufRead> {
    from: BufReader<GzDecoder<R>>,
    line: Vec<u8>,
}

impl<R: BufRead> Lines<R> {
    /// The next line, without its end; `None` after the last. `at` is for errors.
    fn next(&mut self, longest: usize, at: Place) -> Result<Option<&[u8]>, RecordingError> {
        self.line.clear();
        let most = u64::try_from(longest).unwrap_or(u64::MAX);
        match self.from.by_ref().take(most).read_until(b'\n', &mut self.line) {
            Ok(0) => self.end(at).map(|()| None),
            Ok(_) => match self.line.strip_suffix(b"\n") {
                Some(line) => Ok(Some(line)),
                None if self.line.len() == longest => {
                    Err(RecordingError::TooLarge { at, limit: Limit::Line })
                }
                None => Err(RecordingError::Cut(at)),
            },
            Err(source) => Err(match source.kind() {
                io::ErrorKind::UnexpectedEof => RecordingError::Cut(at),
                // what flate2 says of bytes that are no gzip
                io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData => {
                    RecordingError::Damaged { at, got: source.to_string() }
                }
                _ => RecordingError::Read { at, source },
            }),
        }
    }

    /// The file ends where the gzip member does.
    fn end(&mut self, at: Place) -> Result<(), RecordingError> {
        let rest = self.from.get_mut().get_mut().fill_buf();
        match rest.map_err(|source| RecordingError::Read { at, source })? {
            [] => Ok(()),
            _ => {
                let got = "bytes after its end, expected one gzip member";
                Err(RecordingError::Damaged { at, got: got.into() })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::{Compression, write::GzEncoder};

    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &[Result<&str, &str>]) {
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        gzip.write_all(text.as_bytes()).unwrap();
        let bytes = gzip.finish().unwrap();
        let from = BufReader::new(GzDecoder::new(&*bytes));
        let mut lines = Lines { from, line: Vec::new() };
        for &expected in expected {
            let got = lines.next(6, Place::default()).map_err(|err| err.to_string());
            let got = got.map(|line| line.map_or("end".into(), String::from_utf8_lossy));
            assert_eq!(expected, got.as_deref().map_err(String::as_str), "{text:?}");
        }
    }

    #[test]
    fn a_line_has_an_end_and_a_limit() {
        check("", &[Ok("end"), Ok("end")]);
        check("a\n\nb\n", &[Ok("a"), Ok(""), Ok("b"), Ok("end")]);
        check("12345\n", &[Ok("12345"), Ok("end")]);
        check("a\n12345", &[Ok("a"), Err("the recording is cut before its first snapshot")]);
        let long = "the recording is refused before its first snapshot: more than 67108864 bytes in \
                    one line";
        check("a\n123456\n", &[Ok("a"), Err(long)]);
    }
}
