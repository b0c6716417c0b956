//! Rules of the house that neither compiler nor clippy knows, checked on every file that git knows.

use std::fmt;
use std::fs;
use std::process::Command;

use crate::command::asked;
use crate::failure::Failure;
use crate::layout::Layout;
use crate::progress::Done;

/// A file with more lines has more than one reason to exist.
const LINES_MAX: usize = 600;

/// Written by programs, not by us.
const GENERATED: [&str; 2] = ["Cargo.lock", "tests/fuzz/Cargo.lock"];

/// Things left undone. Every word of this file's lists is in two pieces, so that the rules do not find themselves.
const UNDONE: [&str; 5] = [
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("to", "do!("),
    concat!("unimple", "mented!("),
    concat!("#[ig", "nore"),
];

/// Places of one machine.
const PLACES: [&str; 3] = [concat!("/ro", "ot/"), concat!("/wo", "rk/"), concat!("/tmp/", "lab")];

/// Hosts of package registries: ordinary clients know them.
const REGISTRIES: [&str; 8] = [
    concat!("crates", ".io"),
    concat!("rust-lang", ".org/dist"),
    concat!("py", "pi.org"),
    concat!("python", "hosted.org"),
    concat!("npm", "js."),
    concat!("deb.deb", "ian.org"),
    concat!("security.deb", "ian.org"),
    concat!("proxy.go", "lang.org"),
];

/// A broken rule.
#[derive(Debug, PartialEq, Eq)]
struct Fault {
    file: String,
    line: usize,
    rule: Rule,
}

#[derive(Debug, PartialEq, Eq)]
enum Rule {
    Undone(&'static str),
    Place(String),
    Registry(&'static str),
    TooLong(usize),
    NoFinalNewline,
}

/// Reads every file that is tracked, or new and not ignored.
pub(crate) fn check(layout: &Layout) -> Result<((), Done), Failure> {
    let mut git = Command::new("git");
    git.current_dir(layout.root()).args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
    let names = asked(&mut git).ok_or_else(|| {
        Failure::new("`git ls-files` does not work here")
            .advise("tidy reads the files that git knows: install git, and run it in a clone")
    })?;
    let mut faults = Vec::new();
    let mut read = 0;
    for name in names.split('\0').filter(|name| !name.is_empty() && !GENERATED.contains(name)) {
        // A tracked file may be deleted, and one that is not UTF-8 is no text.
        let Ok(text) = fs::read_to_string(layout.root().join(name)) else {
            continue;
        };
        read += 1;
        faults.extend(faults_of(name, &text));
    }
    if faults.is_empty() {
        return Ok(((), Done::Note(format!("{read} files"))));
    }
    let list: Vec<String> = faults.iter().map(ToString::to_string).collect();
    Err(Failure::new(format!("{} rules of the house are broken", faults.len()))
        .tail(list.join("\n"))
        .advise("mend the files; the rules are in tests/xtask/src/tidy.rs"))
}

fn faults_of(name: &str, text: &str) -> Vec<Fault> {
    let mut faults = Vec::new();
    let mut add = |line: usize, rule: Rule| faults.push(Fault { file: name.to_owned(), line, rule });
    let is_source =
        [".rs", ".sh", ".yaml", ".yml", ".toml", ".py", ".proto"].iter().any(|ending| name.ends_with(ending));
    for (number, line) in (1..).zip(text.lines()) {
        if is_source && let Some(word) = UNDONE.into_iter().find(|word| line.contains(word)) {
            add(number, Rule::Undone(word));
        }
        if let Some(place) = place_in(line) {
            add(number, Rule::Place(place));
        }
        if let Some(host) = REGISTRIES.into_iter().find(|host| line.contains(host)) {
            add(number, Rule::Registry(host));
        }
    }
    let lines = text.lines().count();
    if name.ends_with(".rs") && lines > LINES_MAX {
        add(lines, Rule::TooLong(lines));
    }
    if !text.is_empty() && !text.ends_with('\n') {
        add(lines, Rule::NoFinalNewline);
    }
    faults
}

fn place_in(line: &str) -> Option<String> {
    if let Some(place) = PLACES.into_iter().find(|place| line.contains(place)) {
        return Some(place.to_owned());
    }
    // A home directory: that of somebody by name.
    let home = concat!("/ho", "me/");
    line.match_indices(home).find_map(|(at, _)| {
        let rest = line.get(at + home.len()..)?;
        let name: String = rest.chars().take_while(char::is_ascii_lowercase).collect();
        let is_name = !name.is_empty() && rest.get(name.len()..).is_some_and(|rest| rest.starts_with('/'));
        is_name.then(|| format!("{home}{name}/"))
    })
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: ", self.file, self.line)?;
        match &self.rule {
            Rule::Undone(word) => write!(f, "`{word}` leaves something undone"),
            Rule::Place(place) => write!(f, "`{place}` is a place of one machine"),
            Rule::Registry(host) => write!(f, "`{host}` is the host of a package registry"),
            Rule::TooLong(lines) => write!(f, "{lines} lines are more than {LINES_MAX}"),
            Rule::NoFinalNewline => write!(f, "the last line has no end"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(name: &str, text: &str, rules: &[Rule]) {
        let found: Vec<Rule> = faults_of(name, text).into_iter().map(|fault| fault.rule).collect();
        assert_eq!(found, rules, "in {text:?}");
    }

    #[test]
    fn good_text_has_no_faults() {
        check("a.rs", "//! Fine.\nfn main() {}\n", &[]);
        check("empty.rs", "", &[]);
        check("a.md", concat!("what TO", "DO about it\n"), &[]);
    }

    #[test]
    fn every_rule_finds_its_fault() {
        for word in UNDONE {
            check("a.rs", &format!("x {word}\n"), &[Rule::Undone(word)]);
        }
        for place in PLACES {
            check("a.md", &format!("see {place}x\n"), &[Rule::Place(place.to_owned())]);
        }
        for host in REGISTRIES {
            check("a.toml", &format!("url = \"https://{host}/\"\n"), &[Rule::Registry(host)]);
        }
        check("a.md", concat!("/ho", "me/ann/x\n"), &[Rule::Place(concat!("/ho", "me/ann/").to_owned())]);
        check("a.md", concat!("/ho", "me/$USER/x\n"), &[]);
        check("a.rs", "fn main() {}", &[Rule::NoFinalNewline]);
        check("a.rs", &"\n".repeat(601), &[Rule::TooLong(601)]);
        check("a.rs", &"\n".repeat(600), &[]);
    }

    #[test]
    fn a_fault_names_its_place() {
        let fault = Fault { file: "a.rs".into(), line: 3, rule: Rule::NoFinalNewline };
        assert_eq!(fault.to_string(), "a.rs:3: the last line has no end");
    }
}
