//! What a PTX text says of its entry points, read before the driver is.
//!
//! A launch hands the driver a list of addresses, of which it reads as many as the entry declares parameters: an entry with more
//! of them than its kernel has arguments would have it read past the list's end.

/// Checks that a text defines an entry once, with as many 64-bit parameters as its kernel has arguments.
///
/// # Errors
/// A sentence that begins with the entry.
pub(super) fn check_entry(text: &str, entry: &str, arguments: usize) -> Result<(), String> {
    let tokens = tokens(text).map_err(|e| format!("entry {entry} cannot be looked up: {e}"))?;
    let named = |w: &[&str]| w[0] == ".entry" && w[1] == entry;
    let places: Vec<usize> = tokens.windows(2).enumerate().filter(|(_, w)| named(w)).map(|(at, _)| at + 2).collect();
    let [place] = places[..] else {
        return Err(format!("entry {entry} is defined {} times", places.len()));
    };
    let parameters = parameters(&tokens[place..]).map_err(|e| format!("entry {entry} {e}"))?;
    match parameters == arguments {
        true => Ok(()),
        false => Err(format!("entry {entry} takes {parameters} parameters, the kernel has {arguments} arguments")),
    }
}

/// The number of parameters in a list that begins here, each an address; 0 where there is no list.
fn parameters(tokens: &[&str]) -> Result<usize, String> {
    let [first, list @ ..] = tokens else { return Ok(0) };
    if *first != "(" {
        return Ok(0);
    }
    let end = list.iter().position(|t| *t == ")").ok_or("has a list of parameters without an end")?;
    if end == 0 {
        return Ok(0);
    }
    let list: Vec<&[&str]> = list[..end].split(|t| *t == ",").collect();
    let address =
        |p: &&&[&str]| p.first() == Some(&".param") && p.iter().any(|t| [".u64", ".b64", ".s64"].contains(t)) && !p.contains(&"[");
    match list.iter().position(|p| !address(&p)) {
        Some(at) => Err(format!("has a parameter that is no 64-bit address, its number {}", at + 1)),
        None => Ok(list.len()),
    }
}

/// Words and punctuation, without comments and strings.
fn tokens(text: &str) -> Result<Vec<&str>, &'static str> {
    let word = |c: char| c.is_ascii_alphanumeric() || "_$%.@".contains(c);
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").ok_or("a comment does not end")? + 2
        } else if first == '"' {
            rest[1..].find('"').ok_or("a string does not end")? + 2
        } else if first == '#' {
            return Err("the text is not preprocessed");
        } else {
            let length = rest.find(|c| !word(c)).unwrap_or(rest.len()).max(first.len_utf8());
            tokens.push(&rest[..length]);
            length
        };
        rest = rest[length..].trim_start();
    }
    Ok(tokens)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
        .version 8.4\n.target sm_89\n.address_size 64\n\
        .visible .entry one( // .entry one()\n\
        \t.param .u64 .ptr .global .align 16 one_param_0,\n\t.param .u64 .ptr .global .align 16 one_param_1\n)\n\
        .maxntid 256\n{\n\tret;\n}\n\
        /* .entry two(.param .u64 x) */\n.visible .entry two(\n)\n{\n\tret;\n}\n\
        .entry three\n{\n\tret;\n}\n";

    #[test]
    fn an_entry_that_takes_its_kernels_arguments_passes() {
        assert_eq!(check_entry(TEXT, "one", 2), Ok(()));
        assert_eq!(check_entry(TEXT, "two", 0), Ok(()));
        assert_eq!(check_entry(TEXT, "three", 0), Ok(()));
    }

    #[test]
    fn an_entry_with_another_number_of_parameters_is_refused() {
        let error = check_entry(TEXT, "one", 1).unwrap_err();
        assert_eq!(error, "entry one takes 2 parameters, the kernel has 1 arguments");
        assert!(check_entry(TEXT, "one", 3).is_err());
        assert!(check_entry(TEXT, "two", 1).is_err());
    }

    #[test]
    fn an_entry_that_is_missing_or_there_twice_is_refused() {
        assert_eq!(check_entry(TEXT, "four", 0).unwrap_err(), "entry four is defined 0 times");
        let twice = format!("{TEXT}.entry one(.param .u64 a, .param .u64 b, .param .u64 c) {{ ret; }}");
        assert_eq!(check_entry(&twice, "one", 2).unwrap_err(), "entry one is defined 2 times");
    }

    #[test]
    fn parameters_that_are_no_addresses_are_refused() {
        for parameter in [".param .u32 a", ".param .align 8 .b8 a[4096]", ".param .b64 a[512]", ".reg .u64 a", ""] {
            let text = format!(".entry e(.param .u64 p, {parameter})\n{{ ret; }}");
            assert!(check_entry(&text, "e", 2).unwrap_err().contains("no 64-bit address"), "{parameter:?}");
        }
    }

    #[test]
    fn a_text_that_hides_its_entries_is_refused() {
        for text in ["/* .entry e() {}", ".entry e() {} \"", "#define E e\n.entry E() {}", ".entry e(.param .u64 x"] {
            assert!(check_entry(text, "e", 0).is_err(), "{text}");
        }
        // What lies in a comment or a string does not count.
        assert!(check_entry(".file 1 \".entry e()\"\n.entry e(.param .u64 x) {}", "e", 0).is_err());
    }
}
