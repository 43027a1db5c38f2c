//! Counts instructions that lock: those with the prefix, and exchanges with memory, which do without it.
//!
//! callgrind tells how often the instruction at each address was executed, objdump what is there. So this
//! is for x86-64 only.

use std::collections::{HashMap, HashSet};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::count::{self, FEW, MANY};

/// How often they are executed for each request.
pub(crate) struct Locked {
    pub(crate) in_program: f64,
    pub(crate) in_libraries: f64,
}

/// Where programs and libraries have them, as far as it was asked for.
#[derive(Default)]
pub(crate) struct Addresses(HashMap<PathBuf, HashSet<u64>>);

impl Addresses {
    pub(crate) fn executed(&mut self, server: &str, load: &str) -> Locked {
        let [few, many] = [FEW, MANY].map(|n| self.executed_by(server, load, n));
        Locked {
            in_program: count::per_one(few[0], many[0]),
            in_libraries: count::per_one(few[1], many[1]),
        }
    }

    /// In the program and elsewhere, all of a run.
    fn executed_by(&mut self, server: &str, load: &str, n: usize) -> [u64; 2] {
        let program = std::env::current_exe().expect("this program");
        let mut sums = [0, 0];
        for (object, times) in times(&callgrind(server, load, n)) {
            let object = Path::new(object);
            let locked = self.of(object);
            let times = times.iter().filter(|(at, _)| locked.contains(at));
            sums[usize::from(object != program)] += times.map(|(_, times)| times).sum::<u64>();
        }
        sums
    }

    fn of(&mut self, object: &Path) -> &HashSet<u64> {
        let known = self.0.entry(object.to_owned());
        known.or_insert_with(|| disassembled(object))
    }
}

/// What callgrind writes.
fn callgrind(server: &str, load: &str, n: usize) -> String {
    let name = format!("locked.{}.callgrind", std::process::id());
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let out = format!("--callgrind-out-file={}", file.display());
    let options = [
        "--tool=callgrind",
        "--fair-sched=yes",
        "--dump-instr=yes",
        "--compress-pos=no",
        "--compress-strings=no",
        &out,
    ];
    count::this("valgrind", &options, server, load, n);
    let said = std::fs::read_to_string(&file).expect("it was written");
    std::fs::remove_file(&file).expect("it is ours");
    said
}

/// How often the instruction at each address was executed, for each file that was mapped.
fn times(said: &str) -> HashMap<&str, HashMap<u64, u64>> {
    let mut objects = HashMap::<_, HashMap<_, _>>::new();
    let mut object = "";
    let mut lines = said.lines();
    while let Some(line) = lines.next() {
        if let Some(path) = line.strip_prefix("ob=") {
            object = path;
        } else if line.starts_with("calls=") {
            // The cost of what was called, which is told once more where that is.
            lines.next();
        } else if let Some(cost) = line.strip_prefix("0x") {
            let mut words = cost.split(' ');
            let address = words
                .next()
                .and_then(|hex| u64::from_str_radix(hex, 16).ok());
            // The line of the source is between them.
            let times = words.nth(1).and_then(|times| times.parse::<u64>().ok());
            let (address, times) = address.zip(times).expect("address, line, cost");
            *objects
                .entry(object)
                .or_default()
                .entry(address)
                .or_default() += times;
        }
    }
    objects
}

/// Where a program or library has instructions that lock.
fn disassembled(object: &Path) -> HashSet<u64> {
    // What belongs to no file is `???`: the kernel's vDSO, trampolines.
    if !object.is_file() {
        return HashSet::new();
    }
    let mut objdump = Command::new("objdump")
        .args(["--disassemble", "--no-show-raw-insn"])
        .arg(object)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("objdump is needed for this: {e}"));
    let said = BufReader::new(objdump.stdout.take().expect("piped"));
    let mut found = HashSet::new();
    for line in said.lines() {
        let line = line.expect("objdump's output");
        // `  107f:\tlock cmpxchg %rsi,0x2fa0(%rip)`
        if let Some((address, instruction)) = line.split_once(":\t") {
            if locks(instruction) {
                let address = u64::from_str_radix(address.trim(), 16);
                found.insert(address.expect("an address"));
            }
        }
    }
    assert!(objdump.wait().expect("it ends").success());
    found
}

fn locks(instruction: &str) -> bool {
    let in_memory = |operands: &str| operands.contains('(') || operands.contains("%fs:");
    instruction.split_whitespace().any(|word| word == "lock")
        || instruction.starts_with("xchg") && in_memory(instruction)
}
