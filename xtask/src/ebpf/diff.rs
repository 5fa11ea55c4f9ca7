//! How two objects differ, section by section.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;

use crate::{elf, sh};

/// One line for both files, then one for each section that is not the same in both.
pub(crate) fn lines(committed: &[u8], built: &[u8]) -> Result<Vec<String>> {
    let mut lines = vec![
        format!("committed: {} bytes, sha256 {}", committed.len(), sh::sha256(committed)),
        format!("built:     {} bytes, sha256 {}", built.len(), sh::sha256(built)),
    ];
    let Ok(committed) = sections(committed) else {
        lines.push("the committed file is not an ELF object".into());
        return Ok(lines);
    };
    let built = sections(built)?;
    let names: BTreeSet<&str> = committed.keys().chain(built.keys()).copied().collect();
    for name in names {
        match (committed.get(name), built.get(name)) {
            (Some(old), Some(new)) if old == new => {}
            (Some(old), Some(new)) => {
                let first = old.iter().zip(*new).take_while(|(a, b)| a == b).count();
                let (old, new) = (old.len(), new.len());
                lines
                    .push(format!("{name}: {old} and {new} bytes, different from byte {first} on"));
            }
            (Some(old), None) => lines.push(format!("{name}: committed only, {} bytes", old.len())),
            (None, Some(new)) => lines.push(format!("{name}: built only, {} bytes", new.len())),
            (None, None) => {}
        }
    }
    Ok(lines)
}

/// The sections by name; of several of one name, the last.
fn sections(object: &[u8]) -> Result<BTreeMap<&str, &[u8]>> {
    Ok(elf::sections(object)?.into_iter().map(|s| (s.name, s.data)).collect())
}
