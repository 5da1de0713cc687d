//! The command line from outside: what it prints, and its exit codes.

use std::path::Path;
use std::process::{Command, Output};

fn switchyard(args: &[&str], env: &[(&str, &str)]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_switchyard")).args(args).env_clear().envs(env.iter().copied()).output().expect("the binary can be run")
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn temporary(name: &str, text: &str) -> String {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(&path, text).expect("the target directory can be written");
    path.to_str().expect("the target directory's name is UTF-8").to_owned()
}

#[test]
fn a_good_file_is_summed_up() {
    let file = temporary("good.toml", "[cluster]\nscope = \"main\"\n[etcd]\nendpoints = [\"http://10.0.0.1:2379\", \"10.0.0.2\"]\n");
    let output = switchyard(&["check", &file], &[("SWITCHYARD_LISTEN_HTTP", "127.0.0.1:9")]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let expected = format!(
        "{file}: ok\n  cluster     main (namespace /service/)\n  etcd        http://10.0.0.1:2379, http://10.0.0.2:2379\n  \
         read/write  [::]:15000\n  read-only   [::]:15001\n  stats       127.0.0.1:9\n"
    );
    assert_eq!(stdout(&output), expected);
}

#[test]
fn a_bad_file_shows_every_problem_and_exits_with_64() {
    let file = temporary("bad.toml", "[pool]\nmax_sise = 5\nmin_size = -1\n");
    for args in [&["check", file.as_str()][..], &["run", "--config", file.as_str()]] {
        let output = switchyard(args, &[]);
        assert_eq!(output.status.code(), Some(64));
        let expected = format!(
            "{file}:2:1: pool.max_sise: unknown key; did you mean \"max_size\"?\n\
             {file}:3:12: pool.min_size: expected a whole number, found the number -1\n\
             {file}: cluster.scope: is not set: give the cluster's name (scope in patroni.yml) here or in SWITCHYARD_SCOPE\n\
             {file}: etcd.endpoints: is not set: give etcd's addresses here or in SWITCHYARD_ETCD_ENDPOINTS \
             (or members by hand, each under [[cluster.member]])\n\
             switchyard: 4 problems in the configuration\n"
        );
        assert_eq!(stderr(&output), expected);
    }
}

#[test]
fn bad_arguments_exit_with_64() {
    for args in [&[][..], &["fly"], &["run", "--fast"], &["check"]] {
        let output = switchyard(args, &[]);
        assert_eq!(output.status.code(), Some(64), "{args:?}");
        assert!(stderr(&output).contains("Usage:"), "{args:?}: {}", stderr(&output));
    }
}

#[test]
fn the_file_may_be_named_by_the_environment() {
    let output = switchyard(&["run"], &[("SWITCHYARD_CONFIG", "/nonexistent/switchyard.toml")]);
    assert_eq!(output.status.code(), Some(64));
    assert!(stderr(&output).starts_with("/nonexistent/switchyard.toml: can't be read: "), "{}", stderr(&output));
}

#[test]
fn help_says_what_it_is_and_where_to_look_next() {
    let output = switchyard(&["--help"], &[]);
    assert_eq!(output.status.code(), Some(0));
    let text = stdout(&output);
    for part in ["Patroni", "15000", "run", "check", "Example:", "docs/configuration.md", "SIGHUP"] {
        assert!(text.contains(part), "{part} is missing in\n{text}");
    }
    assert!(text.lines().all(|line| line.chars().count() <= 120), "{text}");
    let version = switchyard(&["--version"], &[]);
    assert_eq!(stdout(&version), format!("switchyard {}\n", env!("CARGO_PKG_VERSION")));
}
