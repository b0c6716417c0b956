//! What the manuals say, run: every rule, fault and configuration file in README and `--help`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::process::Command;

use serde_json::{Value, json};
use turnstile_host::config::{Config, Overrides};
use turnstile_rules::{FilterConfig, filter_config_json};

const README: &str = include_str!("../../README.md");

/// The indented blocks below a heading of the README, without their indentation.
fn blocks(heading: &str) -> Vec<String> {
    let (_, section) = README.split_once(&format!("\n{heading}\n")).expect("the README has this heading");
    let end = section.find("\n## ").unwrap_or(section.len());
    let mut blocks = vec![String::new()];
    for line in section[..end].lines() {
        match line.strip_prefix("    ") {
            Some(code) => *blocks.last_mut().unwrap() += &format!("{code}\n"),
            None if line.is_empty() => {}
            None => blocks.push(String::new()),
        }
        if line.is_empty() && !blocks.last().unwrap().is_empty() {
            blocks.push(String::new());
        }
    }
    blocks.retain(|block| !block.is_empty());
    blocks
}

fn parse(rules: &[Value]) -> String {
    filter_config_json("turnstile_host", "default", rules).unwrap_or_else(|faults| panic!("{rules:?}:\n{faults}"))
}

fn help(command: &str) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_turnstile")).args([command, "--help"]).output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

/// The text of every `--rule '...'`.
fn rule_flags(text: &str) -> Vec<Value> {
    text.split("--rule '").skip(1).map(|rest| json!(rest.split('\'').next().unwrap())).collect()
}

#[test]
fn the_rules_in_the_readme_are_rules() {
    let blocks = blocks("## Rules");
    let [_form, lines, object, fault] = blocks.as_slice() else { panic!("the README's rules changed: {blocks:#?}") };
    let lines: Vec<Value> = lines.lines().map(|line| json!(line)).collect();
    assert!(lines.len() >= 4);
    parse(&lines);
    let object: Value = serde_json::from_str(object).unwrap();
    let config = parse(&[object]);
    // The object shows every default.
    let config = FilterConfig::parse(config.as_bytes()).unwrap();
    let line = parse(&[json!("POST pay.example.com/accounts/{id}/transfer key=account:{id} wait=5s name=transfer")]);
    let line = FilterConfig::parse(line.as_bytes()).unwrap();
    assert_eq!(format!("{:?}", config.rules.rules()), format!("{:?}", line.rules.rules()));

    let wrong = fault.lines().nth(1).unwrap().trim();
    let faults = filter_config_json("turnstile_host", "default", &[json!(wrong)]).unwrap_err().to_string();
    assert_eq!(faults.trim_end(), fault.trim_end());
}

#[test]
fn the_rules_of_guard_in_readme_and_help_are_rules() {
    for text in [README, &help("guard")] {
        let rules = rule_flags(text);
        assert!(!rules.is_empty());
        parse(&rules);
    }
}

#[test]
fn the_configuration_in_the_help_has_every_field_at_its_default() {
    let help = help("host");
    let (_, after) = help.split_once("every field at its default:\n").unwrap();
    let toml: String = after
        .trim_start_matches('\n')
        .lines()
        .take_while(|line| !line.is_empty())
        .fold(String::new(), |text, line| text + line.trim_start() + "\n");
    let shown = Config::parse(&toml, &Overrides::default()).unwrap_or_else(|faults| panic!("{toml}\n{faults}"));
    let default = Config::parse("", &Overrides::default()).unwrap();
    assert_eq!(format!("{shown:#?}"), format!("{default:#?}"));
    // A field that the help does not show would be unknown to its reader: every one that is read must be there.
    let fields = toml.lines().filter(|line| line.contains(" = ")).count();
    let read = include_str!("../src/config.rs").matches("section.").count()
        - include_str!("../src/config.rs").matches("section.fault").count();
    assert_eq!(fields, read, "fields shown, fields read");
}

#[test]
fn the_etcd_store_in_the_help_has_every_field() {
    let help = help("host");
    let (_, after) = help.split_once("instead of a file:\n").unwrap();
    let toml: String = after
        .trim_start_matches('\n')
        .lines()
        .take_while(|line| !line.is_empty())
        .fold(String::new(), |text, line| text + line.trim_start() + "\n");
    Config::parse(&toml, &Overrides::default()).unwrap_or_else(|faults| panic!("{toml}\n{faults}"));
    let fields = toml.lines().filter(|line| line.contains(" = ")).count();
    let source = include_str!("../src/config/cluster.rs");
    // Every store has `kind`, `lease_ttl` and `epoch_base`; one more is read together with another, in either case.
    let of_cluster = fields - 3;
    let read = source.matches("section.").count() - source.matches("section.fault").count()
        + source.matches("with_file(section").count()
        - 1;
    assert_eq!(of_cluster, read, "fields shown, fields read");
}

#[test]
fn the_etcd_store_in_the_readme_is_a_configuration() {
    let blocks = blocks("### On an etcd cluster");
    Config::parse(&blocks[0], &Overrides::default()).unwrap_or_else(|faults| panic!("{}\n{faults}", blocks[0]));
}
