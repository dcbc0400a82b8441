//! Names that a request may have meant.

use crate::Error;
use globset::{Glob, GlobSet, GlobSetBuilder};

/// How many names a message shows.
const SHOWN: usize = 3;

/// The end of a sentence about a name or glob that matches nothing: the names most like it.
pub fn nearest<'a>(wanted: &str, names: impl IntoIterator<Item = &'a str>) -> String {
    let wanted: String = wanted.chars().filter(|c| !matches!(c, '*' | '?' | '[' | ']' | '{' | '}')).collect();
    let mut ranked: Vec<(f64, &str)> = names.into_iter().map(|name| (likeness(&wanted, name), name)).collect();
    ranked.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
    ranked.dedup_by_key(|(_, name)| *name);
    let shown: Vec<&str> = ranked.iter().take(SHOWN).map(|(_, name)| *name).collect();
    match shown[..] {
        [] => String::new(),
        [one] => format!("; there is {one}"),
        _ => format!("; the nearest are {}", shown.join(", ")),
    }
}

/// Of the whole names, or of their last parts.
fn likeness(wanted: &str, name: &str) -> f64 {
    let last = |s: &str| s.rsplit('.').next().unwrap_or_default().to_string();
    let parts = strsim::normalized_damerau_levenshtein(&last(wanted), &last(name));
    strsim::jaro_winkler(wanted, name).max(0.95 * parts)
}

/// The globs of a flag, each of which must match one of `names`; `what` is what they name.
///
/// # Errors
/// [`Error::Usage`] for a glob that does not parse or matches nothing.
pub fn globs(flag: &str, patterns: &[String], what: &str, names: &[&str]) -> Result<GlobSet, Error> {
    let mut set = GlobSetBuilder::new();
    for pattern in patterns {
        let glob = Glob::new(pattern).map_err(|e| Error::Usage(format!("{flag} {pattern:?} is no glob: {}", e.kind())))?;
        let matcher = glob.compile_matcher();
        if !names.iter().any(|name| matcher.is_match(name)) {
            return Err(Error::Usage(format!("{flag} {pattern:?} matches no {what}{}", nearest(pattern, names.iter().copied()))));
        }
        set.add(glob);
    }
    set.build().map_err(|e| Error::Usage(format!("{flag} cannot be used: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_glob_that_matches_nothing_is_answered_with_the_names_most_like_it() {
        let names = ["h.0.attn.bias", "h.0.attn.weight", "h.1.attn.bias", "wte.weight"];
        let of = |pattern: &str| globs("--no-decay", &[pattern.to_string()], "parameter", &names).map(|_| ()).map_err(|e| e.to_string());
        assert_eq!(of("*.bias"), Ok(()));
        let typo = of("*.bais").unwrap_err();
        assert!(typo.starts_with("--no-decay \"*.bais\" matches no parameter; the nearest are h.0.attn.bias, h.1.attn.bias,"), "{typo}");
        assert!(of("wet.weight").unwrap_err().contains("wte.weight"));
        assert!(of("[").unwrap_err().contains("is no glob"));
        assert_eq!(nearest("x", []), "");
    }
}
