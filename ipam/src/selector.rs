//! Calico's selector language over labels.
//!
//! ```text
//! selector   = and ( "||" and )*
//! and        = not ( "&&" not )*
//! not        = "!" not | primary
//! primary    = "(" selector ")" | "all()" | "global()" | "has(" key ")"
//!            | key ( "==" | "!=" | "contains" | "starts with" | "ends with" ) string
//!            | key ( "in" | "not in" ) "{" [ string ( "," string )* [ "," ] ] "}"
//! key        = one or more of a-z A-Z 0-9 _ . / -
//! ```
//!
//! A string is in single or double quotes, without escapes. Spaces and tabs, and nothing else, may stand between any two
//! parts but a function's name and its parenthesis; operators of two words may be written as one. Words that are operators or
//! functions are labels where a label can stand. An empty selector matches everything. `!=` and `not in` hold for a label
//! that is absent; every other operator needs the label.

use std::collections::BTreeMap;
use std::fmt;

/// Deepest nesting of parentheses, to bound the recursion over what others wrote.
const MAX_DEPTH: usize = 64;
/// Longest selector in bytes.
const MAX_LENGTH: usize = 64 * 1024;

/// A parsed selector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selector(Node);

/// Text that is not a selector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("selector {selector:?}: at byte {at}: expected {expected}")]
pub struct SelectorError {
    /// The text (its first 200 characters).
    pub selector: String,
    /// Where it stops being one.
    pub at: usize,
    /// What was expected there.
    pub expected: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Node {
    All,
    Has(String),
    Equals(String, String),
    NotEquals(String, String),
    Contains(String, String),
    StartsWith(String, String),
    EndsWith(String, String),
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Not(Box<Self>),
    And(Vec<Self>),
    Or(Vec<Self>),
}

impl Selector {
    /// Parses `text`.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let mut parser = Parser { text, at: 0 };
        if text.len() > MAX_LENGTH {
            return Err(parser.expected(&format!("at most {MAX_LENGTH} bytes")));
        }
        parser.skip_space();
        if parser.rest().is_empty() {
            return Ok(Self(Node::All));
        }
        let node = parser.or(0)?;
        if parser.rest().is_empty() {
            Ok(Self(node))
        } else {
            Err(parser.expected("\"&&\", \"||\" or the end"))
        }
    }

    /// Whether `labels` match.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.0.matches(labels)
    }

    /// Whether it matches whatever the labels are, by its form (`all()` or nothing).
    pub fn is_all(&self) -> bool {
        self.0 == Node::All
    }
}

impl Node {
    fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        let holds =
            |key: &String, test: &dyn Fn(&str) -> bool| labels.get(key).is_some_and(|value| test(value));
        match self {
            Self::All => true,
            Self::Has(key) => labels.contains_key(key),
            Self::Equals(key, value) => holds(key, &|label| label == value),
            Self::NotEquals(key, value) => !holds(key, &|label| label == value),
            Self::Contains(key, part) => holds(key, &|label| label.contains(part.as_str())),
            Self::StartsWith(key, part) => holds(key, &|label| label.starts_with(part.as_str())),
            Self::EndsWith(key, part) => holds(key, &|label| label.ends_with(part.as_str())),
            Self::In(key, values) => holds(key, &|label| values.iter().any(|value| value == label)),
            Self::NotIn(key, values) => !holds(key, &|label| values.iter().any(|value| value == label)),
            Self::Not(inner) => !inner.matches(labels),
            Self::And(parts) => parts.iter().all(|part| part.matches(labels)),
            Self::Or(parts) => parts.iter().any(|part| part.matches(labels)),
        }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |f: &mut fmt::Formatter<'_>, parts: &[Self], operator: &str| {
            f.write_str("(")?;
            for (index, part) in parts.iter().enumerate() {
                write!(f, "{}{part}", if index == 0 { "" } else { operator })?;
            }
            f.write_str(")")
        };
        match self {
            Self::All => f.write_str("all()"),
            Self::Has(key) => write!(f, "has({key})"),
            Self::Equals(key, value) => write!(f, "{key} == {}", Quoted(value)),
            Self::NotEquals(key, value) => write!(f, "{key} != {}", Quoted(value)),
            Self::Contains(key, part) => write!(f, "{key} contains {}", Quoted(part)),
            Self::StartsWith(key, part) => write!(f, "{key} starts with {}", Quoted(part)),
            Self::EndsWith(key, part) => write!(f, "{key} ends with {}", Quoted(part)),
            Self::In(key, values) => write!(f, "{key} in {{{}}}", QuotedList(values)),
            Self::NotIn(key, values) => write!(f, "{key} not in {{{}}}", QuotedList(values)),
            Self::Not(inner) => write!(f, "!{inner}"),
            Self::And(parts) => list(f, parts, " && "),
            Self::Or(parts) => list(f, parts, " || "),
        }
    }
}

struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // There are no escapes; a parsed string lacks at least one of the quotes.
        let quote = if self.0.contains('"') { '\'' } else { '"' };
        write!(f, "{quote}{}{quote}", self.0)
    }
}

struct QuotedList<'a>(&'a [String]);

impl fmt::Display for QuotedList<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, value) in self.0.iter().enumerate() {
            write!(f, "{}{}", if index == 0 { "" } else { ", " }, Quoted(value))?;
        }
        Ok(())
    }
}

/// Recursive descent. Every method leaves `at` behind the space that follows what it took.
struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Parser<'a> {
    fn or(&mut self, depth: usize) -> Result<Node, SelectorError> {
        let first = self.and(depth)?;
        let mut parts = vec![first];
        while self.take("||") {
            parts.push(self.and(depth)?);
        }
        Ok(single_or(parts, Node::Or))
    }

    fn and(&mut self, depth: usize) -> Result<Node, SelectorError> {
        let first = self.not(depth)?;
        let mut parts = vec![first];
        while self.take("&&") {
            parts.push(self.not(depth)?);
        }
        Ok(single_or(parts, Node::And))
    }

    fn not(&mut self, depth: usize) -> Result<Node, SelectorError> {
        if depth > MAX_DEPTH {
            return Err(self.expected(&format!("at most {MAX_DEPTH} levels of nesting")));
        }
        let mut is_negated = false;
        while self.rest().starts_with('!') {
            self.advance(1);
            is_negated = !is_negated;
        }
        let node = self.primary(depth)?;
        Ok(if is_negated {
            Node::Not(Box::new(node))
        } else {
            node
        })
    }

    fn primary(&mut self, depth: usize) -> Result<Node, SelectorError> {
        if self.take("(") {
            let inner = self.or(depth + 1)?;
            self.require(")")?;
            return Ok(inner);
        }
        if self.take("all(") || self.take("global(") {
            self.require(")")?;
            return Ok(Node::All);
        }
        if self.take("has(") {
            let key = self.key()?;
            self.require(")")?;
            return Ok(Node::Has(key));
        }
        self.comparison()
    }

    fn comparison(&mut self) -> Result<Node, SelectorError> {
        let key = self.key()?;
        if self.take("==") {
            return Ok(Node::Equals(key, self.string()?));
        }
        if self.take("!=") {
            return Ok(Node::NotEquals(key, self.string()?));
        }
        if self.words(&["not", "in"]) {
            return Ok(Node::NotIn(key, self.set()?));
        }
        if self.words(&["in"]) {
            return Ok(Node::In(key, self.set()?));
        }
        if self.words(&["contains"]) {
            return Ok(Node::Contains(key, self.string()?));
        }
        if self.words(&["starts", "with"]) {
            return Ok(Node::StartsWith(key, self.string()?));
        }
        if self.words(&["ends", "with"]) {
            return Ok(Node::EndsWith(key, self.string()?));
        }
        Err(self.expected("one of ==, !=, in, not in, contains, starts with, ends with"))
    }

    fn set(&mut self) -> Result<Vec<String>, SelectorError> {
        self.require("{")?;
        let mut values = Vec::new();
        if self.take("}") {
            return Ok(values);
        }
        loop {
            values.push(self.string()?);
            let is_more = self.take(",");
            if self.take("}") {
                return Ok(values);
            }
            if !is_more {
                return Err(self.expected("\",\" or \"}\""));
            }
        }
    }

    fn string(&mut self) -> Result<String, SelectorError> {
        let quote = self.rest().chars().next().filter(|c| matches!(c, '"' | '\''));
        let Some(quote) = quote else {
            return Err(self.expected("a string in quotes"));
        };
        let body = self.rest().get(1..).unwrap_or_default();
        let Some(length) = body.find(quote) else {
            return Err(self.expected("a string with a closing quote"));
        };
        let value = body.get(..length).unwrap_or_default().to_owned();
        self.advance(length + 2);
        Ok(value)
    }

    fn key(&mut self) -> Result<String, SelectorError> {
        let length = self.rest().bytes().take_while(|&b| is_key_byte(b)).count();
        let key = self.rest().get(..length).unwrap_or_default().to_owned();
        if key.is_empty() {
            return Err(self.expected("a label, a function, \"!\" or \"(\""));
        }
        self.advance(length);
        Ok(key)
    }

    /// All of `words`.
    fn words(&mut self, words: &[&str]) -> bool {
        let from = self.at;
        let are_all = words.iter().all(|word| self.take(word));
        if !are_all {
            self.at = from;
        }
        are_all
    }

    fn take(&mut self, token: &str) -> bool {
        let found = self.rest().starts_with(token);
        if found {
            self.advance(token.len());
        }
        found
    }

    fn require(&mut self, token: &str) -> Result<(), SelectorError> {
        if self.take(token) {
            Ok(())
        } else {
            Err(self.expected(&format!("{token:?}")))
        }
    }

    fn advance(&mut self, bytes: usize) {
        self.at += bytes;
        self.skip_space();
    }

    fn skip_space(&mut self) {
        self.at += self.rest().len() - self.rest().trim_start_matches([' ', '\t']).len();
    }

    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn expected(&self, what: &str) -> SelectorError {
        let selector = self.text.chars().take(200).collect();
        SelectorError {
            selector,
            at: self.at,
            expected: what.to_owned(),
        }
    }
}

fn is_key_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'/' | b'-')
}

fn single_or(mut parts: Vec<Node>, combine: fn(Vec<Node>) -> Node) -> Node {
    match (parts.pop(), parts.is_empty()) {
        (Some(only), true) => only,
        (Some(last), false) => {
            parts.push(last);
            combine(parts)
        }
        (None, _) => Node::All,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs
            .iter()
            .map(|&(key, value)| (key.to_owned(), value.to_owned()))
            .collect()
    }

    #[test]
    fn selectors_match_as_calico_documents() {
        let node = labels(&[
            ("rack", "r1"),
            ("kubernetes.io/hostname", "node-a"),
            ("all", "x"),
            ("in", "y"),
        ]);
        let table = [
            ("", true),
            ("  ", true),
            ("all()", true),
            ("!all()", false),
            ("rack == 'r1'", true),
            ("rack==\"r1\"", true),
            ("rack == \"r2\"", false),
            ("rack != 'r2'", true),
            ("zone != 'r2'", true),
            ("zone == ''", false),
            ("has(rack)", true),
            ("has( zone )", false),
            ("!has(route-reflector)", true),
            ("! ! has(rack)", true),
            ("rack in {'r1', 'r2'}", true),
            ("rack in {}", false),
            ("rack not in {\"r1\"}", false),
            ("zone not in {'a'}", true),
            ("rack contains '1'", true),
            ("rack starts with 'r'", true),
            ("rack ends with 'r'", false),
            ("kubernetes.io/hostname == 'node-a'", true),
            ("all == 'x' && in == 'y'", true),
            ("rack == 'r2' || rack == 'r1' && has(zone)", false),
            ("(rack == 'r2' || rack == 'r1') && !has(zone)", true),
        ];
        for (text, expected) in table {
            let selector = Selector::parse(text).unwrap();
            assert_eq!(selector.matches(&node), expected, "{text}");
            assert_eq!(Selector::parse(&selector.to_string()), Ok(selector), "{text}");
        }
    }

    #[test]
    fn every_form_that_calico_takes_is_taken() {
        let pod = labels(&[
            ("a", "1"),
            ("A_b.c/d-e", "it's"),
            ("not", "n"),
            ("has", "h"),
            ("starts", "s"),
            ("e", ""),
        ]);
        for (text, expected) in [
            // Spaces and tabs, or none.
            ("a=='1'&&has(not)||!has(a)", true),
            ("\ta\t==\t'1' ", true),
            ("( ( a == '1' ) )", true),
            ("all( )", true),
            ("has(\ta )", true),
            ("a in{'1'}", true),
            ("a contains'1'", true),
            // Operators of two words.
            ("a notin {'1'}", false),
            ("a not\tin {'2'}", true),
            ("a startswith '1'", true),
            ("a ends  with '2'", false),
            // Both quotes; no escapes.
            ("A_b.c/d-e == \"it's\"", true),
            ("A_b.c/d-e contains '\\'", false),
            ("e == ''", true),
            ("e contains ''", true),
            ("missing contains ''", false),
            ("e starts with ''", true),
            // Sets.
            ("a in {}", false),
            ("a not in {}", true),
            ("missing not in {}", true),
            ("a in {'2',\"1\"}", true),
            ("a in { '1' , }", true),
            // Negations cancel out.
            ("!!a == '1'", true),
            ("! ! ! has(a)", false),
            ("!(a == '1' || has(x))", false),
            ("!global()", false),
            // Precedence: not, and, or.
            ("has(x) && has(x) || has(a)", true),
            ("has(x) && (has(x) || has(a))", false),
            ("!has(x) && has(a)", true),
            // Words where a label stands.
            ("not == 'n' && has == 'h' && starts starts with 's'", true),
            ("has(has)", true),
            ("in == 'x' || all != 'y'", true),
            ("1.2/3-4_5 != 'x'", true),
        ] {
            let selector = Selector::parse(text).unwrap();
            assert_eq!(selector.matches(&pod), expected, "{text}");
            assert_eq!(Selector::parse(&selector.to_string()), Ok(selector), "{text}");
        }
        let deep = format!("{}has(a){}", "(".repeat(60), ")".repeat(60));
        assert!(Selector::parse(&deep).unwrap().matches(&pod));
        assert!(
            Selector::parse(&format!("{}has(a)", "!".repeat(10_000)))
                .unwrap()
                .matches(&pod)
        );
    }

    #[test]
    fn a_wrong_selector_says_where_and_what_was_expected() {
        for (text, at) in [
            ("rack", 4),
            ("rack = 'r1'", 5),
            ("rack == r1", 8),
            ("rack == 'r1", 8),
            ("rack == 'r1\"", 8),
            ("(rack == 'r1'", 13),
            ("rack == 'r1')", 12),
            ("rack == 'r1' rack", 13),
            ("rack == 'r1' & all()", 13),
            ("rack == 'r1' | all()", 13),
            ("rack == 'r1' &&", 15),
            ("|| all()", 0),
            ("&& all()", 0),
            ("()", 1),
            ("!", 1),
            ("has()", 4),
            ("has (rack)", 4),
            ("all ()", 4),
            ("all(rack)", 4),
            ("All()", 3),
            ("has(rack", 8),
            ("has('rack')", 4),
            ("rack in {'a' 'b'}", 13),
            ("rack in {,}", 9),
            ("rack in 'a'", 8),
            ("rack in {'a'", 12),
            ("rack not {'a'}", 5),
            ("rack starts 'a'", 5),
            ("rack equals 'a'", 5),
            ("rack ! = 'a'", 5),
            ("rack ==\n'a'", 7),
            ("ra\u{10d}k == 'a'", 2),
            ("$rack == 'a'", 0),
            ("'rack' == 'a'", 0),
        ] {
            assert_eq!(Selector::parse(text).unwrap_err().at, at, "{text}");
        }
        assert!(Selector::parse(&"(".repeat(100_000)).is_err());
        assert!(Selector::parse(&"!".repeat(10_000)).is_err());
    }

    proptest! {
        #[test]
        fn any_text_parses_or_errs_and_what_parses_prints_to_itself(text in "[a-b!&|(){}'\", =noti]{0,40}") {
            if let Ok(selector) = Selector::parse(&text) {
                prop_assert_eq!(Selector::parse(&selector.to_string()), Ok(selector));
            }
        }

        #[test]
        fn hostile_text_never_panics(text in any::<String>()) {
            let _ = Selector::parse(&text);
        }
    }
}
