//! `docs/guarantees.md` is true to the tests: every guarantee names some, all of which there are, and no test belongs to
//! a guarantee that is not there. And the crate's docs are true to what it logs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// How many there are.
const GUARANTEES: u32 = 23;

#[test]
fn every_guarantee_is_shown_by_tests_that_there_are() {
    let sources = sources();
    let named = named();
    let numbers: Vec<u32> = named.keys().copied().collect();
    assert_eq!(numbers, (1..=GUARANTEES).collect::<Vec<_>>());
    let mut wrong = Vec::new();
    for (number, shown_by) in &named {
        if shown_by.is_empty() {
            wrong.push(format!("G{number} names no test"));
        }
        for (file, function) in shown_by {
            let source = sources.get(Path::new(file));
            if !source.is_some_and(|source| tests(source).contains(&function.as_str())) {
                wrong.push(format!("G{number}: no test `{function}` in tests/{file}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Rules of the simulator's model are named as functions of it, at the end of a paragraph.
#[test]
fn the_rules_that_are_named_are_there() {
    let text = read(&root().join("docs/guarantees.md"));
    let model = read(&root().join("tests/sim/model.rs"));
    let paragraphs = text
        .split("\n\n")
        .filter_map(|it| it.split_once("of the model in"));
    let quoted = paragraphs.flat_map(|(before, _)| before.split('`').skip(1).step_by(2));
    let rules: BTreeSet<_> = quoted.filter(|it| !it.contains(['.', ' '])).collect();
    assert!(rules.len() > 10, "{rules:?}");
    for rule in rules {
        assert!(model.contains(&format!("\nfn {rule}(")), "no rule `{rule}`");
    }
}

#[test]
fn every_guarantee_has_tests_of_its_number_and_no_test_has_another() {
    let mut tested = BTreeSet::new();
    for (file, source) in sources() {
        for function in tests(&source) {
            for number in numbers(function) {
                let known = (1..=GUARANTEES).contains(&number);
                assert!(known, "{}: {function}", file.display());
                tested.insert(number);
            }
        }
    }
    assert_eq!(
        tested,
        (1..=GUARANTEES).collect::<BTreeSet<_>>(),
        "some have no test"
    );
}

/// Level, message and fields: each row of the table is an event of the source, and each event a row.
#[test]
fn what_is_logged_is_as_documented() {
    let docs = read(&root().join("src/lib.rs"));
    let rows = docs.split("//! | level | message | fields |\n//! |---|---|---|\n");
    let rows = rows.last().expect("a table of them");
    let rows = rows.lines().map_while(|line| line.strip_prefix("//! | "));
    let documented: BTreeSet<Logged> = rows
        .map(|row| {
            let mut cells = row.splitn(3, " | ");
            let mut next = || cells.next().expect("three cells").to_owned();
            let (level, message, fields) = (next(), next(), next());
            // What stands in brackets is a link.
            let quoted = fields.replace("[`", "").replace("`]", "");
            let fields = quoted.split('`').skip(1).step_by(2).map(str::to_owned);
            (level, message, fields.collect())
        })
        .collect();
    let logged = below(&root().join("src"));
    let logged = logged.values().flat_map(|source| events(source));
    assert_eq!(documented, logged.collect());
}

type Logged = (String, String, BTreeSet<String>);

fn events(source: &str) -> Vec<Logged> {
    let code: String = source
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .collect();
    let calls = code.split("tracing::").skip(1);
    let calls = calls.filter_map(|call| {
        let (level, call) = call.split_once("!(")?;
        if !level.chars().all(char::is_alphabetic) {
            return None; // not a macro's name
        }
        // No field's value has a comma in it, or a string.
        let mut parts = call.split('"');
        let (fields, message) = (parts.next()?, parts.next()?);
        let fields = fields.split(',').map(|field| {
            let name = field.split('=').next().unwrap_or(field);
            name.trim().trim_start_matches(['%', '?']).to_owned()
        });
        let fields = fields.filter(|field| !field.is_empty());
        Some((level.to_owned(), message.to_owned(), fields.collect()))
    });
    calls.collect()
}

/// What `tests/sim/mutate` breaks is there to be broken: once, or it would not know which.
#[test]
fn every_mutant_of_the_simulator_is_of_what_there_is() {
    let list = read(&root().join("tests/sim/mutants"));
    let mut wrong = Vec::new();
    for line in list.lines().filter(|it| !it.starts_with('#')) {
        let line = line.replace("\\|", "\0");
        let parts: Vec<_> = line
            .split(" | ")
            .map(|it| it.replace('\0', "|").replace("\\n", "\n"))
            .collect();
        let [name, file, from, _] = &parts[..] else {
            wrong.push(format!("not four parts: {line}"));
            continue;
        };
        let n = read(&root().join(file)).matches(&**from).count();
        if n != 1 {
            wrong.push(format!("{name}: {n} times in {file}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Files and functions that each guarantee's section names, in backticks: `file.rs: function`.
fn named() -> BTreeMap<u32, Vec<(String, String)>> {
    let text = read(&root().join("docs/guarantees.md"));
    let sections = text.split("\n### G").skip(1);
    let named = sections.map(|section| {
        let (number, text) = section.split_once(' ').expect("a title behind the number");
        let quoted = text.split('`').skip(1).step_by(2);
        let tests = quoted.filter_map(|quoted| quoted.split_once(".rs: "));
        let tests = tests.map(|(file, function)| (format!("{file}.rs"), function.to_owned()));
        (number.parse().expect("a number"), tests.collect())
    });
    named.collect()
}

/// `g9_g17_a_long_poll…` belongs to 9 and 17.
fn numbers(function: &str) -> impl Iterator<Item = u32> {
    let words = function.split('_');
    words.map_while(|word| word.strip_prefix('g')?.parse().ok())
}

/// Those that run: with a test's attribute and not ignored, or one of a list that a macro makes tests of.
fn tests(source: &str) -> Vec<&str> {
    let (mut tests, mut attributes, mut made) = (Vec::new(), Vec::new(), BTreeSet::new());
    let mut within_attribute = false;
    for line in source.lines().map(str::trim) {
        if within_attribute || line.starts_with("#[") {
            within_attribute = !line.ends_with(']');
            attributes.push(line);
            continue;
        }
        if let Some(name) = function(line) {
            made.insert(name);
            let has = |what: &str| attributes.iter().any(|it| it.starts_with(what));
            if (has("#[test]") || has("#[tokio::test")) && !has("#[ignore") {
                tests.push(name);
            }
        }
        if !line.starts_with("//") {
            attributes.clear();
        }
    }
    let lines = source.lines().filter_map(|line| {
        let line = line.strip_prefix("    ")?;
        line.strip_suffix(',').filter(|name| made.contains(name))
    });
    tests.extend(lines);
    tests
}

fn function(line: &str) -> Option<&str> {
    let line = line.strip_prefix("async ").unwrap_or(line);
    let line = line.strip_prefix("fn ")?;
    let end = line.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    Some(&line[..end?])
}

/// By their paths below `tests`.
fn sources() -> BTreeMap<PathBuf, String> {
    below(&root().join("tests"))
}

fn below(top: &Path) -> BTreeMap<PathBuf, String> {
    let mut sources = BTreeMap::new();
    let mut folders = vec![top.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder of ours") {
            let path = entry.expect("a file of ours").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|it| it == "rs") {
                let below = path.strip_prefix(top).expect("it is below");
                sources.insert(below.to_owned(), read(&path));
            }
        }
    }
    sources
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
