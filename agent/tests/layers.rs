//! Who may import whom (ARCHITECTURE.md): reads the `use crate::` and `crate::` paths of every
//! source file and fails on an arrow that is not drawn there.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

const LEAVES: &[&str] = &[
    "errno",
    "error",
    "event",
    "histogram",
    "id",
    "intern",
    "serial",
    "threads",
    "time",
    "metric",
    "input",
    "outlet",
];

/// Module, and what it may import beside itself and the leaves.
const ARROWS: &[(&str, &[&str])] = &[
    ("errno", &[]),
    ("error", &[]),
    ("event", &[]),
    ("histogram", &[]),
    ("id", &[]),
    ("threads", &[]),
    ("outlet", &[]),
    ("intern", &[]),
    ("serial", &[]),
    ("time", &[]),
    ("metric", &[]),
    ("input", &[]),
    ("shed", &[]),
    ("config", &["detect", "shed"]),
    ("sys", &[]),
    ("sources", &["sys"]),
    ("model", &[]),
    ("detect", &["model"]),
    ("audit", &["model", "detect"]),
    ("publish", &["model", "detect", "audit", "shed"]),
    ("recording", &["model"]),
    ("notify", &["sys", "model", "detect"]),
    ("daemon", &["config", "sys", "sources", "model", "detect", "publish", "notify", "shed"]),
    (
        "cli",
        &[
            "config",
            "sys",
            "sources",
            "model",
            "detect",
            "audit",
            "publish",
            "recording",
            "shed",
            "daemon",
        ],
    ),
];

fn source_files(dir: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("readable").map(|entry| entry.expect("readable").path()) {
        if entry.is_dir() {
            source_files(&entry, into);
        } else if entry.extension().is_some_and(|extension| extension == "rs") {
            into.push(entry);
        }
    }
}

/// The modules at the top of `crate` that `text` names.
fn imports(text: &str) -> BTreeSet<String> {
    let code = text.split("#[cfg(test)]").next().unwrap_or_default();
    let mut found = BTreeSet::new();
    for after in code.split("crate::").skip(1) {
        // `crate::{a, b::{c, d}, e}` or `crate::a::…`
        let Some(group) = after.strip_prefix('{') else {
            found.insert(name(after));
            continue;
        };
        let (mut depth, mut item) = (0, String::new());
        for c in group.chars() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => {
                    found.insert(name(&std::mem::take(&mut item)));
                }
                _ if depth == 0 => item.push(c),
                _ => {}
            }
        }
        found.insert(name(&item));
    }
    found.remove("");
    found
}

fn name(path: &str) -> String {
    path.trim_start().chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect()
}

#[test]
fn imports_are_found_in_every_form() {
    let text = "use crate::{id::{A, B}, sys::netns,\n    time};\nfn f(x: crate::model::T) {}\n\
                #[cfg(test)]\nmod tests { use crate::cli; }";
    let expected = ["id", "model", "sys", "time"].map(str::to_owned);
    assert_eq!(BTreeSet::from(expected), imports(text));
}

#[test]
fn no_module_imports_one_that_it_may_not() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    source_files(&root, &mut files);
    assert!(20 < files.len(), "{files:?}");
    for file in files {
        let path = file.strip_prefix(&root).expect("below it");
        let first = path.iter().next().expect("a name").to_string_lossy();
        let module = first.trim_end_matches(".rs");
        if ["lib", "main"].contains(&module) || file.ends_with("tests.rs") {
            continue;
        }
        let Some((_, allowed)) = ARROWS.iter().find(|(name, _)| *name == module) else {
            panic!("{}: draw {module} in ARCHITECTURE.md and in ARROWS", path.display());
        };
        for import in imports(&fs::read_to_string(&file).expect("readable")) {
            let fine =
                import == module || allowed.contains(&&*import) || LEAVES.contains(&&*import);
            assert!(fine, "{}: {module} may not import {import}", path.display());
        }
    }
}

#[test]
fn unsafe_code_is_in_sys_alone() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    source_files(&root, &mut files);
    for file in files {
        let text = fs::read_to_string(&file).expect("readable");
        let n =
            text.lines().filter(|line| line.contains("unsafe {") || line.contains("unsafe impl"));
        let path = file.strip_prefix(&root).expect("below it");
        // aya asks for one promise about a type of our own
        let allowed = path.starts_with("sys") || path == Path::new("sources/ebpf/load.rs");
        assert!(allowed || n.count() == 0, "{}", path.display());
    }
}
