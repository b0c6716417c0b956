//! The README's examples of the API, run: each request gets the status and the fields that are shown below it.

use serde_json::Value;

use crate::bench::{Answer, Ask, LONG, Running};

const README: &str = include_str!("../../../README.md");

/// Requests, and the answers shown below them.
fn examples() -> Vec<(String, String)> {
    let (_, section) = README.split_once("\n## Without Envoy: the API\n").expect("the README has this section");
    let section = section.split("\n## ").next().unwrap();
    let mut lines = section.lines().filter_map(|line| line.strip_prefix("    "));
    let mut examples = Vec::new();
    while let Some(line) = lines.next() {
        if line.starts_with("curl ") {
            let answer = lines.next().and_then(|answer| answer.strip_prefix("# ")).expect("an answer below each curl");
            examples.push((line.to_owned(), answer.to_owned()));
        }
    }
    examples
}

/// The words of a command line, as a shell makes them of these examples.
fn words(line: &str, variables: &[(&str, &str)]) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quote = None;
    for char in line.chars() {
        let word = words.last_mut().unwrap();
        match (quote, char) {
            (None, '\'' | '"') => quote = Some(char),
            (Some(open), _) if open == char => quote = None,
            (None, ' ') => words.push(String::new()),
            // Variables are not looked for between single quotes; a control character stands for them there.
            (Some('\''), '$') => word.push('\u{1}'),
            _ => word.push(char),
        }
    }
    for word in &mut words {
        for (name, value) in variables {
            *word = word.replace(&format!("${name}"), value);
        }
        *word = word.replace('\u{1}', "$");
    }
    words
}

fn parse(line: &str, session: &str) -> Ask {
    let variables = [("api", "/v1"), ("json", "content-type: application/json"), ("session", session)];
    let words = words(line, &variables);
    let (mut method, mut path, mut headers, mut body) = (None, None, Vec::new(), None);
    let mut rest = words.iter().skip(1);
    while let Some(word) = rest.next() {
        match word.as_str() {
            "-X" => method = rest.next().cloned(),
            "-H" => headers.extend(rest.next().and_then(|header| header.split_once(": "))),
            "-d" => body = rest.next().cloned(),
            _ => assert_eq!(path.replace(word.clone()), None, "{line}"),
        }
    }
    let method = method.unwrap_or_else(|| if body.is_some() { "POST" } else { "GET" }.into());
    let ask = headers.iter().fold(Ask::new(&method, &path.unwrap()), |ask, (name, value)| ask.header(name, value));
    ask.body(body.unwrap_or_default())
}

fn fields(value: &Value) -> Vec<&String> {
    value.as_object().map(|members| members.keys().collect()).unwrap_or_default()
}

fn compare(line: &str, shown: &str, answer: &Answer) {
    let (status, body) = shown.split_once(' ').unwrap_or((shown, ""));
    assert_eq!(answer.status.to_string(), status, "{line}: {answer:?}");
    if body.is_empty() {
        return assert!(answer.body.is_empty(), "{line}: {answer:?}");
    }
    let (shown, told): (Value, Value) = (serde_json::from_str(body).unwrap(), answer.json());
    assert_eq!(fields(&shown), fields(&told), "{line}");
    let same = |name: &str| assert_eq!(shown[name], told[name], "{name} of {line}");
    ["id", "seq", "heartbeat_seq", "lost", "draining", "holders", "waiter_count", "locks", "records", "type", "detail"]
        .into_iter()
        .for_each(same);
    for (shown, told) in shown["keys"].as_array().into_iter().flatten().zip(told["keys"].as_array().unwrap_or(&vec![]))
    {
        assert_eq!((fields(shown), &shown["key"]), (fields(told), &told["key"]), "{line}");
    }
}

#[tokio::test]
async fn the_examples_in_the_readme_are_true() {
    let running = Running::start(LONG).await;
    let examples = examples();
    assert!(examples.len() >= 9, "{examples:#?}");
    let mut session = String::new();
    for (line, shown) in &examples {
        let answer = parse(line, &session).send(running.api).await;
        compare(line, shown, &answer);
        if let Some(name) = answer.status.eq(&201).then(|| answer.json()["session"].as_str().unwrap().to_owned()) {
            session = name;
        }
    }
}

#[test]
fn the_commands_in_the_readme_have_these_flags() {
    let commands = README.lines().filter_map(|line| line.strip_prefix("    turnstile "));
    let mut found = 0;
    for line in commands {
        let words = words(line, &[]);
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_turnstile"));
        // Where nobody listens: the flags are understood, and then nobody answers.
        let output = command.args(&words).args(["--api", "http://127.0.0.1:9"]).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{line}: {output:?}");
        found += 1;
    }
    assert_eq!(found, 2);
}
