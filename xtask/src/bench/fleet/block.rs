//! Writes one block of Prometheus' TSDB: an index of version 2 and one segment of chunks (tsdb/docs/format of
//! Prometheus' sources).
//!
//! In: series in the order of their labels, with chunks that several may share. Not here: WAL, tombstones,
//! histograms. Memory: four bytes for each label of each series.

use std::{
    collections::{BTreeSet, HashMap},
    fs::{self, File},
    io::{BufWriter, Write},
    path::Path,
};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::chunk::{Bytes, crc32c};

const INDEX_MAGIC: u32 = 0xBAAA_D700;
const CHUNKS_MAGIC: u32 = 0x85BD_40DD;
/// Names the folder, in the letters of a ULID.
const ULID: &str = "01BACK0GDF0EET000000000000";
/// Series begin at multiples of this, and are named by the factor.
const ALIGNMENT: u64 = 16;

/// Names and values of labels; each stands for its place in the order of all.
pub(super) struct Symbols {
    sorted: Vec<String>,
    places: HashMap<String, u32>,
}

/// One chunk in the segment.
#[derive(Clone, Copy, Debug)]
pub(super) struct ChunkRef {
    /// The times of the first and the last sample, in milliseconds.
    pub(super) span: (i64, i64),
    pub(super) n_samples: u64,
    at: u64,
}

/// One block while it is written.
pub(super) struct Block<'a> {
    symbols: &'a Symbols,
    folder: std::path::PathBuf,
    index: Sink,
    chunks: Sink,
    symbols_at: u64,
    series_at: u64,
    postings: HashMap<(u32, u32), Vec<u32>>,
    all: Vec<u32>,
    n_samples: u64,
    n_chunks: u64,
    entry: Vec<u8>,
}

/// A file, and how long it is.
struct Sink {
    file: BufWriter<File>,
    length: u64,
}

impl Sink {
    fn create(path: &Path) -> Result<Self> {
        let file =
            File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self { file: BufWriter::with_capacity(1 << 20, file), length: 0 })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes)?;
        self.length += u64::try_from(bytes.len())?;
        Ok(())
    }

    fn align(&mut self, to: u64) -> Result<()> {
        let missing = self.length.next_multiple_of(to) - self.length;
        self.write(&[0; 16][..usize::try_from(missing)?])
    }

    /// A section: its length, its content and a checksum.
    fn section(&mut self, content: &[u8]) -> Result<()> {
        self.write(&u32::try_from(content.len())?.to_be_bytes())?;
        self.write(content)?;
        self.write(&crc32c(content).to_be_bytes())
    }
}

impl Symbols {
    pub(super) fn new(all: BTreeSet<String>) -> Result<Self> {
        let sorted: Vec<String> = all.into_iter().collect();
        let mut places = HashMap::with_capacity(sorted.len());
        for (symbol, place) in sorted.iter().zip(0_u32..) {
            places.insert(symbol.clone(), place);
        }
        ensure!(sorted.len() == places.len(), "a symbol is there twice");
        Ok(Self { sorted, places })
    }

    /// Where a symbol stands.
    pub(super) fn place(&self, symbol: &str) -> Result<u32> {
        self.places.get(symbol).copied().with_context(|| format!("no symbol {symbol:?}"))
    }

    fn text(&self, place: u32) -> Result<&str> {
        let at = usize::try_from(place)?;
        Ok(self.sorted.get(at).context("no such symbol")?)
    }
}

impl<'a> Block<'a> {
    /// A block below `data`, the folder of a TSDB.
    pub(super) fn create(data: &Path, symbols: &'a Symbols) -> Result<Self> {
        let folder = data.join(ULID);
        fs::create_dir_all(folder.join("chunks"))?;
        let mut index = Sink::create(&folder.join("index"))?;
        let mut chunks = Sink::create(&folder.join("chunks/000001"))?;
        index.write(&INDEX_MAGIC.to_be_bytes())?;
        index.write(&[2])?;
        chunks.write(&CHUNKS_MAGIC.to_be_bytes())?;
        chunks.write(&[1, 0, 0, 0])?;
        let symbols_at = index.length;
        let mut content = u32::try_from(symbols.sorted.len())?.to_be_bytes().to_vec();
        for symbol in &symbols.sorted {
            content.text(symbol);
        }
        index.section(&content)?;
        index.align(ALIGNMENT)?;
        let series_at = index.length;
        Ok(Self {
            symbols,
            folder,
            index,
            chunks,
            symbols_at,
            series_at,
            postings: HashMap::new(),
            all: Vec::new(),
            n_samples: 0,
            n_chunks: 0,
            entry: Vec::new(),
        })
    }

    /// Adds samples to the segment; series refer to them.
    pub(super) fn chunk(&mut self, samples: &[(i64, f64)]) -> Result<ChunkRef> {
        let (Some(first), Some(last)) = (samples.first(), samples.last()) else {
            anyhow::bail!("a chunk without samples");
        };
        let data = super::chunk::encode(samples)?;
        let at = self.chunks.length;
        let mut entry = Vec::with_capacity(data.len() + 16);
        entry.uvarint(u64::try_from(data.len())?);
        let checked = entry.len();
        entry.push(super::chunk::XOR);
        entry.extend(data);
        let sum = crc32c(&entry[checked..]);
        entry.extend(sum.to_be_bytes());
        self.chunks.write(&entry)?;
        Ok(ChunkRef { span: (first.0, last.0), n_samples: u64::try_from(samples.len())?, at })
    }

    /// Adds a series; those before it have smaller labels.
    pub(super) fn series(&mut self, labels: &[(u32, u32)], chunks: &[ChunkRef]) -> Result<()> {
        let reference = u32::try_from(self.index.length / ALIGNMENT)?;
        let mut entry = std::mem::take(&mut self.entry);
        entry.clear();
        entry.uvarint(u64::try_from(labels.len())?);
        for &(name, value) in labels {
            entry.uvarint(name.into());
            entry.uvarint(value.into());
            self.postings.entry((name, value)).or_default().push(reference);
        }
        entry.uvarint(u64::try_from(chunks.len())?);
        let mut before: Option<&ChunkRef> = None;
        for chunk in chunks {
            let (first, last) = chunk.span;
            match before {
                None => {
                    entry.varint(first);
                    entry.uvarint(u64::try_from(last - first)?);
                    entry.uvarint(chunk.at);
                }
                Some(before) => {
                    entry.uvarint(u64::try_from(first - before.span.1)?);
                    entry.uvarint(u64::try_from(last - first)?);
                    entry.varint(i64::try_from(chunk.at)? - i64::try_from(before.at)?);
                }
            }
            before = Some(chunk);
            self.n_samples += chunk.n_samples;
            self.n_chunks += 1;
        }
        let mut length = Vec::new();
        length.uvarint(u64::try_from(entry.len())?);
        self.index.write(&length)?;
        self.index.write(&entry)?;
        self.index.write(&crc32c(&entry).to_be_bytes())?;
        self.index.align(ALIGNMENT)?;
        self.all.push(reference);
        self.entry = entry;
        Ok(())
    }

    /// Writes what refers to the series; how many series and samples there are.
    pub(super) fn finish(mut self, span: (i64, i64)) -> Result<(usize, u64)> {
        let postings = std::mem::take(&mut self.postings);
        let mut keys: Vec<_> = postings.keys().copied().collect();
        keys.sort_unstable();
        // no label indices: nothing reads them in version 2
        let label_indices_at = self.index.length;
        let postings_at = self.index.length;
        let all = std::mem::take(&mut self.all);
        let mut table = u32::try_from(keys.len() + 1)?.to_be_bytes().to_vec();
        self.posting(&mut table, ("", ""), &all)?;
        for key in keys {
            let names = (self.symbols.text(key.0)?, self.symbols.text(key.1)?);
            self.posting(&mut table, names, &postings[&key])?;
        }
        let label_table_at = self.index.length;
        self.index.section(&0_u32.to_be_bytes())?;
        let table_at = self.index.length;
        self.index.section(&table)?;
        let places = [
            self.symbols_at,
            self.series_at,
            label_indices_at,
            label_table_at,
            postings_at,
            table_at,
        ];
        let contents: Vec<u8> = places.iter().flat_map(|at| at.to_be_bytes()).collect();
        self.index.write(&contents)?;
        self.index.write(&crc32c(&contents).to_be_bytes())?;
        self.index.file.flush()?;
        self.chunks.file.flush()?;
        let meta = json!({
            "ulid": ULID, "version": 1, "minTime": span.0, "maxTime": span.1 + 1,
            "stats": {
                "numSamples": self.n_samples, "numSeries": all.len(), "numChunks": self.n_chunks,
            },
            "compaction": {"level": 1, "sources": [ULID]},
        });
        fs::write(self.folder.join("meta.json"), meta.to_string())?;
        Ok((all.len(), self.n_samples))
    }

    /// The series that have a label, and where they stand as a line of the table.
    fn posting(
        &mut self,
        table: &mut Vec<u8>,
        (name, value): (&str, &str),
        series: &[u32],
    ) -> Result<()> {
        self.index.align(4)?;
        table.uvarint(2);
        table.text(name);
        table.text(value);
        table.uvarint(self.index.length);
        let mut content = u32::try_from(series.len())?.to_be_bytes().to_vec();
        content.extend(series.iter().flat_map(|it| it.to_be_bytes()));
        self.index.section(&content)
    }
}
