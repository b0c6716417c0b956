//! What is refused in a configuration, and how that reads.
#![allow(clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "helpers of tests are tests")]

use serde_json::{Value, json};
use turnstile_rules::{FilterConfig, filter_config_json, parse_rules_file};

fn faults_of(rules: Value) -> String {
    let config = json!({ "cluster": "turnstile_host", "rules": rules });
    let parsed = FilterConfig::parse(config.to_string().as_bytes());
    parsed.map(|_| ()).map_err(|faults| faults.to_string()).expect_err("a faulty configuration was taken")
}

/// The only fault of a line, with the text under the caret up to the next space.
fn check(line: &str, at: &str, message: &str) {
    let config = json!({ "cluster": "turnstile_host", "rules": [line] });
    let Err(faults) = FilterConfig::parse(config.to_string().as_bytes()) else { panic!("taken: {line}") };
    let all: Vec<_> = faults.iter().collect();
    assert_eq!(all.len(), 1, "{line}:\n{faults}");
    let excerpt = all[0].excerpt.as_ref().unwrap_or_else(|| panic!("{line} has no excerpt: {faults}"));
    let pointed: String = excerpt.text.chars().skip(excerpt.column).collect();
    assert_eq!((pointed.split(' ').next().unwrap_or_default(), all[0].message.as_str()), (at, message), "{line}");
    assert_eq!(all[0].place, "rules[0]");
}

#[test]
fn all_faults_are_told_together() {
    let config = json!({
        "cluster": "turnstile host",
        "namespace": "a/b",
        "colour": "red",
        "rules": [
            "POST /accounts/{id}/transfer key=account:{di} wiat=5s",
            "post,GET,GET Pay_.example.com:80/a/{id key=a b hold=0",
            {
                "name": "transfer",
                "match": { "methods": ["POST", 7], "path": "/accounts/{id}//{id}", "verb": "GET" },
                "kee": "x",
                "wait": 5,
                "hold": "2h",
            },
            7,
            "POST /b key=b",
            "PUT,POST /b key=other",
            { "name": "POST /b", "match": { "methods": ["*"], "path": "/c" }, "key": "c" },
        ]
    });
    let faults = FilterConfig::parse(config.to_string().as_bytes()).expect_err("it is full of faults").to_string();
    assert_eq!(faults, include_str!("all_faults.txt").trim_end(), "{faults}");
}

#[test]
fn faults_of_lines() {
    let form = "expected METHOD[,METHOD...] [HOST]/PATH key=TEMPLATE[,TEMPLATE...] [OPTION=VALUE...]";
    check("", "", &format!("an empty rule; {form}"));
    check("  ", "", &format!("an empty rule; {form}"));
    check("/a key=a", "/a", &format!("the methods are missing; {form}"));
    check("POST /a", "", "the key is missing: expected key=TEMPLATE");
    let target = "expected a path template after the methods, as in POST /accounts/{id}";
    check("POST key=a", "key=a", target);
    check("POST key=a/b", "key=a/b", target);
    check("POST accounts key=a", "accounts", target);
    let method = "expected a method such as POST, or '*' for every method";
    check("POST, /a key=a", "", method);
    check("P(ST /a key=a", "P(ST", method);
    check("Post /a key=a", "Post", "methods are written in capitals: expected POST, found Post");
    check("POST,PUT,POST /a key=a", "POST", "the method POST is there twice");
    check("POST,* /a key=a", "*", "'*' is every method and stands alone");
    check("POST /a key=a key=b", "key=b", "key is given twice");
    let options = "key, mode, wait, queue, fail_fast, hold, lock_delay, reentrant, on_lost, on_host_unavailable, name";
    check("POST /a key=a shared", "shared", &format!("expected OPTION=VALUE, OPTION one of {options}"));
    check("POST /a key=a color=red", "color=red", &format!("unknown option; expected one of {options}"));
    // An object's field, and no option of a line.
    check("POST /a keys=a key=a", "keys=a", &format!("unknown option; expected one of {options}"));
    check("POST /a key=a on_lost=cry", "cry", "expected abort or continue");
    check("POST /a key=a on_host_unavailable=", "", "expected deny or allow");
    let name = "a name has 1 to 128 characters, none of the outer ones a space";
    check("POST /a key=a name=", "", name);
    check("POST /a key=a name=é", "é", "a name has only printable ASCII characters");
}

#[test]
fn faults_of_hosts() {
    let host = "expected a host such as pay.example.com, or *.example.com for all hosts under it";
    check("POST a_b!c/x key=a", "!c/x", host);
    check("POST pay.example.com./x key=a", "pay.example.com./x", host);
    check("POST a..b/x key=a", "a..b/x", host);
    check("POST *.*.example.com/x key=a", "*.example.com/x", host);
    check("POST pay*.example.com/x key=a", "*.example.com/x", host);
    check("POST [::1/x key=a", "[::1/x", host);
    check("POST *.[::1]/x key=a", "[::1]/x", host);
    check("POST */x key=a", "*/x", "for any host, leave the host out");
    check("POST a:80/x key=a", ":80/x", "hosts are matched without their port: leave it out");
}

#[test]
fn faults_of_path_templates() {
    let empty = "an empty segment: paths are matched without doubled and trailing slashes";
    check("POST /a/ key=a", "", empty);
    check("POST //a key=a", "/a", empty);
    check("POST /a/./b key=a", "./b", "a '.' segment: paths are matched without them");
    let wildcard = "not a wildcard; write {name} for one segment, {*name} for a tail";
    check("POST /a/* key=a", "*", wildcard);
    check("POST /a/** key=a", "**", wildcard);
    let never = |what: &str| format!("never matches: a request with {what} in its path is refused");
    check("POST /a/../b key=a", "../b", &never("a '..' segment"));
    check("POST /a%2Fb key=a", "a%2Fb", &never("an escaped slash"));
    check("POST /a;b key=a", "a;b", &never("a path parameter (';')"));
    check("POST /a%zz key=a", "a%zz", &never("an invalid percent escape"));
    check("POST /a%2541 key=a", "a%2541", &never("a doubly escaped byte"));
    let query = "a path template has no query, fragment or space (%20 is an escaped space)";
    check("POST /a?b=c key=a", "?b=c", query);
    check("POST /a#b key=a", "#b", query);
    let whole = "a parameter fills a whole segment, as in /{id}/; a literal brace is %7B or %7D";
    check("POST /a/{id}.json key=a", "{id}.json", whole);
    check("POST /a/{id key=a", "{id", whole);
    check("POST /a/x} key=a", "}", whole);
    let name = "expected a parameter's name of letters, digits, '_' and '-', as in {id}, or {*rest} for a tail";
    check("POST /a/{} key=a", "}", name);
    check("POST /a/{*} key=a", "}", name);
    check("POST /a/{id:int} key=a", "id:int}", name);
    check("POST /{*rest}/a key=a", "a", "nothing can follow a tail parameter");
    check("POST /{id}/{*id} key=a", "id}", "the parameter {id} is there twice");
    let deep = format!("POST {} key=a", "/x".repeat(65));
    check(&deep, &"/x".repeat(65), "a path template has at most 64 segments");
}

#[test]
fn faults_of_key_templates() {
    for (line, at) in [("key=", ""), ("key=a,", ""), ("key=,a", ",a"), ("key=a,,b", ",b")] {
        check(&format!("POST /a {line}"), at, "a key template must not be empty");
    }
    check("POST /{x} key=a,{x},b,{x} mode=shared", "{x}", "this key is there twice");
    check("POST /a key=é", "é", "a key has only visible ASCII characters and no spaces");
    check("POST /a key={id", "{id", "'{' is not closed; a literal brace is doubled: '{{'");
    check("POST /a key=a,{id,b", "{id,b", "'{' is not closed; a literal brace is doubled: '{{'");
    check("POST /a key=id}", "}", "'}' closes nothing; a literal brace is doubled: '}}'");
    let available = "available: {query.NAME}, {header.NAME}";
    check("POST /a key={id}", "{id}", &format!("there is no {{id}} here; {available}"));
    check("POST /a key={}", "{}", &format!("there is no {{}} here; {available}"));
    check("POST /a key={cookie.x}", "{cookie.x}", &format!("there is no {{cookie.x}} here; {available}"));
    let with_path = format!("there is no {{*rest}} here; available: {{a}}, {{rest}}, {}", &available[11..]);
    check("POST /{a}/{*rest} key={*rest}", "{*rest}", &with_path);
    check("POST /a key={query.}", "}", "the query parameter's name is missing");
    check("POST /a key={query.é}", "é}", "the name of a query parameter is visible ASCII, not escaped");
    check("POST /a key={header.}", "}", "expected a header's name, as in {header.x-tenant}");
    check("POST /a key={header.a:b}", "a:b}", "expected a header's name, as in {header.x-tenant}");
    let host = "the host cannot be a part of a key; write a rule for each host";
    check("POST /a key={header.Host}", "Host}", host);
    let apart = "two values need a character between them that neither contains, such as ':' or '/', or else different \
                 requests could get the same key";
    check("POST /{a}/{b} key={a}{b}", "{b}", apart);
    check("POST /{a}/{b} key={a}-{b}", "{b}", apart);
    check("POST /{a}/{b} key={a}x%41{b}", "{b}", apart);
    check("POST /{*a} key={a}:{a}", "{a}", "a tail may stand in a key only once");
    let long = "k".repeat(505);
    let config = json!({ "cluster": "c", "rules": [format!("POST /a key={long}")] }).to_string();
    let faults = FilterConfig::parse(config.as_bytes()).expect_err("too long").to_string();
    assert_eq!(faults, "rules[0]: its keys have 513 bytes before any value; at most 512");
}

#[test]
fn faults_of_modes() {
    let mode = "expected exclusive, shared or limit:N";
    check("POST /a key=a mode=", "", mode);
    check("POST /a key=a mode=Shared", "Shared", mode);
    check("POST /a key=a mode=limit", "limit", mode);
    check("POST /a key=a mode=shared:2", "shared:2", mode);
    check("POST /a key=a,b mode=shared,", "", mode);
    let limit = "expected a whole number from 1 to 65535";
    for number in ["", "0", "65536", "+4", "-1", "4.5", "x", "99999999999999999999"] {
        check(&format!("POST /a key=a mode=limit:{number}"), number, limit);
    }
    check("POST /a key=a,b mode=shared,limit:0", "0", limit);
    let count = |modes, keys| format!("{modes} modes for {keys} keys; expected one for all, or one for each");
    check("POST /a key=a mode=shared,shared", "shared,shared", &count(2, 1));
    check("POST /a key=a,b,c mode=shared,shared", "shared,shared", &count(2, 3));
    check("POST /a key=a,b mode=shared,shared,shared", "shared,shared,shared", &count(3, 2));
    check("POST /a key=a mode=shared mode=shared", "mode=shared", "mode is given twice");
}

#[test]
fn faults_of_numbers_and_switches() {
    let queue = "expected a whole number from 1 to 1000000";
    for number in ["", "0", "1000001", "1e3", "+5", "5s", "99999999999999999999"] {
        check(&format!("POST /a key=a queue={number}"), number, queue);
    }
    for option in ["fail_fast", "reentrant"] {
        for value in ["", "yes", "true", "ON", "1"] {
            check(&format!("POST /a key=a {option}={value}"), value, "expected on or off");
        }
    }
}

/// The keys and modes of an object: every fault at the entry that has it.
#[test]
fn faults_of_lists() {
    let check = |more: Value, expected: &str| {
        let mut rule = json!({ "match": { "methods": ["POST"], "path": "/a" } });
        rule.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        assert_eq!(faults_of(json!([rule])), expected, "{rule}");
    };
    check(
        json!({ "key": "a,b" }),
        "rules[0].key, column 2: a key has no commas; several keys are a list, \"keys\": [...]\n    a,b\n     ^",
    );
    check(
        json!({ "keys": ["a", "b,", "{c}", 7], "mode": ["shared", false, "limit:x"] }),
        "rules[0].keys[3]: expected a string, found a number\nrules[0].mode[1]: expected a string, found a boolean",
    );
    check(
        json!({ "keys": ["a", "{c}", "{d", ""], "mode": ["shared", "limit:x"], "queue": "many", "fail_fast": "of" }),
        "rules[0].keys[1], column 1: there is no {c} here; available: {query.NAME}, {header.NAME}\n    {c}\n    ^\n\
         rules[0].keys[2], column 1: '{' is not closed; a literal brace is doubled: '{{'\n    {d\n    ^\n\
         rules[0].keys[3], column 1: a key template must not be empty\n    \n    ^\n\
         rules[0].mode[1], column 7: expected a whole number from 1 to 65535\n    limit:x\n          ^\n\
         rules[0].mode[0], column 1: 2 modes for 4 keys; expected one for all, or one for each\n    shared\n    ^\n\
         rules[0].queue, column 1: expected a whole number from 1 to 1000000\n    many\n    ^\n\
         rules[0].fail_fast, column 1: expected on or off\n    of\n    ^",
    );
    let keys = "rules[0].keys: expected a list of key templates, as in [\"account:{from}\", \"account:{to}\"]";
    check(json!({ "keys": [] }), keys);
    check(json!({ "keys": "a,b" }), keys);
    check(json!({ "key": "a", "keys": ["b"] }), "rules[0].keys: given beside key; a rule has one of the two");
    let mode = "rules[0].mode: expected a mode, or a list of modes, one for each key";
    check(json!({ "key": "a", "mode": [] }), mode);
    check(json!({ "key": "a", "mode": { "limit": 4 } }), mode);
    check(
        json!({ "key": "a", "mode": "shared,shared" }),
        "rules[0].mode, column 1: expected exclusive, shared or limit:N\n    shared,shared\n    ^",
    );
    check(
        json!({ "key": "a", "queue": 5, "reentrant": true }),
        "rules[0].queue: expected a string, found a number\nrules[0].reentrant: expected a string, found a boolean",
    );
}

#[test]
fn faults_of_durations() {
    let unit = "expected a whole number with a unit, as in 250ms, 5s, 2m or 1h";
    check("POST /a key=a wait=", "", unit);
    check("POST /a key=a wait=s", "s", unit);
    check("POST /a key=a wait=5", "", &format!("the unit is missing; {unit}"));
    check("POST /a key=a wait=5sec", "sec", unit);
    check("POST /a key=a wait=1.5s", ".5s", unit);
    check("POST /a key=a wait=-1s", "-1s", unit);
    check("POST /a key=a wait=601s", "601s", "too long; at most 10m");
    check("POST /a key=a hold=61m", "61m", "too long; at most 1h");
    check("POST /a key=a lock_delay=99999999999999999999h", "99999999999999999999h", "too long; at most 1h");
    check("POST /a key=a hold=0s", "0s", "must be longer than 0");
}

#[test]
fn faults_of_documents() {
    let check = |json: &str, expected: &str| {
        let Err(faults) = FilterConfig::parse(json.as_bytes()) else { panic!("taken: {json}") };
        assert_eq!(faults.to_string(), expected, "{json}");
    };
    check("", "not valid JSON: EOF while parsing a value at line 1 column 0");
    check("{} {}", "not valid JSON: trailing characters at line 1 column 4");
    check("[]", "expected an object with cluster, clusters, namespace, rules, found a list");
    let cluster = "cluster: missing; expected the name of the host's cluster in Envoy, as in \"turnstile_host\"; or \
                   several of them as a list, clusters";
    check("{}", &format!("{cluster}\nrules: missing; expected a list of rules"));
    check(
        r#"{"cluster": null, "rules": []}"#,
        "cluster: expected a string, found null\nrules: expected at least one rule",
    );
    check(r#"{"cluster": "c", "rules": {}}"#, "rules: expected a list of rules, found an object");
    check(r#"{"cluster": "c", "cluster": "d", "rules": ["* / key=a"]}"#, "cluster: given twice");
    check(
        r#"{"cluster": "c", "rules": [{"match": 1, "key": "a", "key": "b"}]}"#,
        "rules[0].key: given twice\nrules[0].match: expected an object with host, methods, path, found a number",
    );
    check(
        r#"{"cluster": "c", "rules": [{}]}"#,
        "rules[0].match: missing; expected an object with host, methods, path\n\
         rules[0].key: missing; expected a key template, as in \"account:{id}\"",
    );
    check(
        r#"{"cluster": "c", "rules": [{"match": {"methods": []}, "key": "a"}]}"#,
        "rules[0].match.methods: expected a list of methods, as in [\"POST\"], or [\"*\"] for every method\n\
         rules[0].match.path: missing; expected a path template, as in \"/accounts/{id}\"",
    );
    assert!(FilterConfig::parse(b"\xff").is_err());
    assert!(FilterConfig::parse("[".repeat(100_000).as_bytes()).is_err());
}

#[test]
fn faults_of_clusters() {
    let check = |fields: Value, expected: &str| {
        let mut config = json!({ "rules": ["* / key=a"] });
        config.as_object_mut().expect("an object").extend(fields.as_object().expect("an object").clone());
        let faults = FilterConfig::parse(config.to_string().as_bytes()).expect_err("faulty clusters were taken");
        assert_eq!(faults.to_string(), expected, "{fields}");
    };
    let list = "clusters: expected a list of the names of hosts' clusters in Envoy, as in [\"turnstile_host_0\", \
                \"turnstile_host_1\"]";
    for clusters in [json!([]), json!("a"), json!({}), json!(null)] {
        check(json!({ "clusters": clusters }), list);
    }
    let both = "clusters: given beside cluster; a filter has one of the two";
    check(json!({ "cluster": "a", "clusters": ["b"] }), both);
    check(json!({ "clusters": ["a", 7, "b c"] }), "clusters[1]: expected a string, found a number");
    let name = "a cluster's name is 1 to 256 visible ASCII characters";
    check(
        json!({ "clusters": ["a", "b c", "a", ""] }),
        &format!(
            "clusters[1], column 1: {name}\n    b c\n    ^\n\
             clusters[2], column 1: this cluster is there twice\n    a\n    ^\n\
             clusters[3], column 1: {name}\n    \n    ^"
        ),
    );
    let names = |count: usize| (0..count).map(|number| format!("host_{number}")).collect::<Vec<_>>();
    check(json!({ "clusters": names(17) }), "clusters: 17 clusters; at most 16");
    let most = json!({ "clusters": names(16), "rules": ["* / key=a"] }).to_string();
    assert_eq!(FilterConfig::parse(most.as_bytes()).expect("good clusters").clusters, names(16));
}

/// Rules are the same whatever their parameters are called and however their static segments are spelled.
#[test]
fn duplicates_are_refused_naming_both() {
    let check = |one: &str, other: &str, expected: &str| assert_eq!(faults_of(json!([one, other])), expected);
    check(
        "POST /a/{x} key=a",
        "POST,PUT /a/{y} key=b",
        "rules[1]: 'POST,PUT /a/{y}' is for the same host, method and path as rules[0] ('POST /a/{x}')",
    );
    check(
        "* Pay.example.com/%61/{x} key=a name=first",
        "* pay.example.com/a/{y} key=b name=second",
        "rules[1]: 'second' is for the same host, method and path as rules[0] ('first')",
    );
    check(
        "* /{*x} key=a",
        "* /{*y} key=b",
        "rules[1]: '* /{*y}' is for the same host, method and path as rules[0] ('* /{*x}')",
    );
    check("* /a key=a name=n", "* /b key=b name=n", "rules[1]: has the same name as rules[0] ('n'); names are unique");
}

#[test]
fn rules_files() {
    let text = "\u{feff}# accounts\n\n  POST /a/{id} key=a:{id}#x  # one\r\n\tGET /b key=b\n";
    let rules = parse_rules_file(text).unwrap_or_else(|faults| panic!("{faults}"));
    assert_eq!(rules, ["POST /a/{id} key=a:{id}#x", "GET /b key=b"].map(Value::from));
    let json = filter_config_json("turnstile_host", "default", &rules).expect("good rules");
    let config = FilterConfig::parse(json.as_bytes()).expect("good rules");
    assert_eq!((config.clusters[0].as_str(), config.namespace.as_str()), ("turnstile_host", "default"));
    assert_eq!(config.rules.rules().iter().map(|rule| rule.name()).collect::<Vec<_>>(), ["POST /a/{id}", "GET /b"]);

    let object = json!({ "match": { "methods": ["POST"], "path": "/a" }, "key": "a" });
    let array = json!([object, "GET /b key=b"]);
    assert_eq!(parse_rules_file(&format!("\n{array}")).expect("good rules"), *array.as_array().expect("an array"));

    let check = |text: &str, expected: &str| {
        let Err(faults) = parse_rules_file(text) else { panic!("taken: {text}") };
        assert_eq!(faults.to_string(), expected, "{text}");
    };
    check("", "rules: expected at least one rule");
    check("# none\n", "rules: expected at least one rule");
    check("{}", "expected a JSON array of rules, or one rule a line");
    check("[1]", "rules[0]: expected a line (a string) or an object, found a number");
    check(
        "# x\nPOST /a key=a\n\n POST /a key={b} # c\nPOST /a key=b",
        "line 4, column 14: there is no {b} here; available: {query.NAME}, {header.NAME}\n     POST /a key={b} \n                 ^\n\
         line 5: 'POST /a' is for the same host, method and path as line 2 ('POST /a')",
    );
}
