//! Brings a text into the form in which keywords compare, so that `ＳＴＯＰ!!`, `S\u{200b}top` and `stop`,
//! or `إِلْغَاءُ الاِشْتِرَاكِ` and `الغاء الاشتراك`, are one word. The same steps run over keyword and input.
//!
//! Compatibility forms, case and the spelling variants of Arabic script follow Unicode (UAX 15,
//! CaseFolding.txt); which marks and letters are dropped or merged is our table, because writing on a
//! phone leaves them out at will. Vowel signs of Indic scripts stay: without them a word is another one.

use unicode_normalization::{
    UnicodeNormalization as _,
    char::{decompose_compatible, is_combining_mark},
};

/// Longest keyword after folding, in characters.
pub const KEYWORD_CHARS_MAX: usize = 40;
/// Most words of a keyword after folding.
pub const KEYWORD_WORDS_MAX: usize = 5;
/// Most bytes of a text that [`fold`] folds. 40 letters with every vowel mark stay far below it.
pub const FOLD_BYTES_MAX: usize = 1_024;

/// The folded form of a text: lower case, without vowel marks, punctuation, symbols and emoji, words
/// separated by one space. Folding twice changes nothing.
///
/// A text over [`FOLD_BYTES_MAX`] bytes is cut there, so that huge input costs nothing; whoever looks for
/// a keyword uses [`fold_candidate`], which refuses such texts.
pub fn fold(text: &str) -> String {
    let text = &text[..text.floor_char_boundary(FOLD_BYTES_MAX)];
    if text.is_ascii() {
        return tidy(text.chars().map(|character| character.to_ascii_lowercase()));
    }
    let letters: String = text
        .chars()
        .filter(|character| !is_apostrophe(*character))
        .nfkc()
        .filter(|character| !is_format(*character))
        .flat_map(case_fold)
        .nfd()
        .filter(|character| !is_dropped_mark(*character))
        .flat_map(merge_letter)
        .collect();
    // Apostrophes that were deleted may leave a letter beside a mark that composes with it.
    tidy(letters.nfc()).nfc().collect()
}

/// Most letters, marks and digits of a text that can still fold to [`KEYWORD_CHARS_MAX`]: three Jamo become
/// one syllable, and no other letter that is kept is made of more.
const CANDIDATE_CHARS_MAX: usize = 3 * KEYWORD_CHARS_MAX;

/// The folded form of a text that could be a keyword; none when it is empty, or longer than 40 characters
/// or 5 words. What folding deletes or makes a space of does not count, however much there is and wherever
/// it stands. Linear in the text, and done with a text that is no keyword after its first letters.
pub fn fold_candidate(text: &str) -> Option<String> {
    let folded = fold(&condensed(text)?);
    let fits = !folded.is_empty()
        && folded.chars().count() <= KEYWORD_CHARS_MAX
        && folded.split(' ').count() <= KEYWORD_WORDS_MAX;
    fits.then_some(folded)
}

/// A text without what folding deletes anyway, and with one space for every run of what it makes a space of;
/// none when what is left is too long for a keyword.
fn condensed(text: &str) -> Option<String> {
    let mut condensed = String::new();
    let (mut plain, mut all, mut gap) = (0, 0, false);
    for character in text.chars() {
        if is_deleted(character) {
            continue;
        }
        if is_padding(character) {
            gap = true;
        } else {
            all += 1;
            plain += usize::from(character.is_ascii());
            if plain > KEYWORD_CHARS_MAX || all > CANDIDATE_CHARS_MAX {
                return None;
            }
            if gap && !condensed.is_empty() {
                condensed.push(' ');
            }
            gap = false;
            condensed.push(character);
        }
    }
    Some(condensed)
}

/// Deletes apostrophes, makes one space of every run of what is no letter, mark or digit, and trims.
fn tidy(characters: impl Iterator<Item = char>) -> String {
    let mut folded = String::new();
    let mut gap = false;
    for character in characters {
        if is_apostrophe(character) {
            continue;
        }
        if !is_word(character) {
            gap = true;
            continue;
        }
        if gap && !folded.is_empty() {
            folded.push(' ');
        }
        gap = false;
        folded.push(character);
    }
    folded
}

/// Full case folding. Rust has none; upper and then lower case gives the same for every letter that
/// compatibility normalization leaves (ß, ς, ΐ, …).
fn case_fold(character: char) -> impl Iterator<Item = char> {
    character.to_uppercase().flat_map(char::to_lowercase)
}

/// Letters of one sound that people write for each other, and digits of every script. The second
/// character is there for ligatures.
fn merge_letter(character: char) -> impl Iterator<Item = char> {
    let (first, second) = match character {
        'ı' => (Some('i'), None),
        'œ' => (Some('o'), Some('e')),
        'æ' => (Some('a'), Some('e')),
        'ø' => (Some('o'), None),
        'ß' => (Some('s'), Some('s')),
        'ٱ' => (Some('ا'), None),
        'ى' | 'ی' => (Some('ي'), None),
        'ة' | 'ہ' | 'ھ' => (Some('ه'), None),
        'ک' => (Some('ك'), None),
        TATWEEL => (None, None),
        other => (Some(ascii_digit(other).unwrap_or(other)), None),
    };
    first.into_iter().chain(second)
}

/// The stroke that stretches an Arabic word.
const TATWEEL: char = '\u{640}';

/// Zero of every script that writes numbers in tens, where NFKC leaves one (Unicode, category Nd). The
/// nine digits follow each zero.
const ZEROS: [u32; 66] = [
    0x0660, 0x06F0, 0x07C0, 0x0966, 0x09E6, 0x0A66, 0x0AE6, 0x0B66, 0x0BE6, 0x0C66, 0x0CE6, 0x0D66, 0x0DE6,
    0x0E50, 0x0ED0, 0x0F20, 0x1040, 0x1090, 0x17E0, 0x1810, 0x1946, 0x19D0, 0x1A80, 0x1A90, 0x1B50, 0x1BB0,
    0x1C40, 0x1C50, 0xA620, 0xA8D0, 0xA900, 0xA9D0, 0xA9F0, 0xAA50, 0xABF0, 0x104A0, 0x10D30, 0x10D40,
    0x11066, 0x110F0, 0x11136, 0x111D0, 0x112F0, 0x11450, 0x114D0, 0x11650, 0x116C0, 0x116D0, 0x116DA,
    0x11730, 0x118E0, 0x11950, 0x11BF0, 0x11C50, 0x11D50, 0x11DA0, 0x11F50, 0x16130, 0x16A60, 0x16AC0,
    0x16B50, 0x16D70, 0x1E140, 0x1E2F0, 0x1E4F0, 0x1E950,
];

fn ascii_digit(character: char) -> Option<char> {
    let code = u32::from(character);
    let zero = ZEROS.into_iter().find(|zero| (*zero..*zero + 10).contains(&code))?;
    char::from_digit(code - zero, 10)
}

/// Characters that show nothing and only steer display: joiners, direction marks, variation selectors.
const fn is_format(character: char) -> bool {
    matches!(
        character,
        '\u{200b}'..='\u{200f}'
            | '\u{202a}'..='\u{202e}'
            | '\u{2060}'..='\u{2064}'
            | '\u{2066}'..='\u{2069}'
            | '\u{feff}'
            | '\u{ad}'
            | '\u{61c}'
            | '\u{180e}'
            | '\u{fe00}'..='\u{fe0f}'
    )
}

/// Accents of Latin, Greek and Cyrillic, and the vowel marks and hamzas of Arabic. Not every mark: the
/// vowel signs of Devanagari are marks too.
const fn is_dropped_mark(character: char) -> bool {
    matches!(
        character,
        '\u{300}'..='\u{36f}'
            | '\u{610}'..='\u{61a}'
            | '\u{64b}'..='\u{65f}'
            | '\u{670}'
            | '\u{6d6}'..='\u{6ed}'
    )
}

/// The apostrophe and what is typed for it. They hold a word together: `don't` is one word.
const fn is_apostrophe(character: char) -> bool {
    matches!(
        character,
        '\'' | '`'
            | '´'
            | '\u{2018}'
            | '\u{2019}'
            | '\u{201b}'
            | '\u{2032}'
            | '\u{2b9}'
            | '\u{2bb}'
            | '\u{2bc}'
    )
}

fn is_word(character: char) -> bool {
    // Negative circled and squared Latin letters are symbols (category So) that Unicode calls alphabetic.
    let is_symbol = matches!(character, '\u{1f130}'..='\u{1f189}');
    (character.is_alphabetic() && !is_symbol) || character.is_ascii_digit() || is_combining_mark(character)
}

/// What is deleted wherever it stands. The iota below (U+0345) is a letter once its case is folded.
fn is_deleted(character: char) -> bool {
    if character.is_ascii() {
        return is_apostrophe(character);
    }
    is_format(character)
        || is_apostrophe(character)
        || (is_dropped_mark(character) && character != '\u{345}')
        || character == TATWEEL
}

/// What, where it is not deleted, becomes a space wherever it stands: no letter, mark or digit, nor made of any
/// (`㎏`, `①`).
fn is_padding(character: char) -> bool {
    match character {
        _ if character.is_ascii() => !character.is_ascii_alphanumeric(),
        // Symbols and emoji, most of what there is in practice.
        '\u{2190}'..='\u{21ff}' | '\u{2600}'..='\u{26ff}' | '\u{1f300}'..='\u{1faff}' => true,
        _ if is_word(character) => false,
        _ => {
            let mut is_kept = false;
            decompose_compatible(character, |part| {
                let is_mark = is_combining_mark(part) && !is_dropped_mark(part);
                is_kept |= part.is_alphanumeric() || is_mark || is_apostrophe(part);
            });
            !is_kept
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Every spelling of the table in the provider notes gives the documented form.
    #[test]
    fn documented_spellings_fold_to_one_form() {
        for (input, folded) in [
            ("🛑 STOP!!!", "stop"),
            ("S\u{200b}TOP", "stop"),
            ("ＳＴＯＰ", "stop"),
            ("OPT_OUT", "opt out"),
            ("opt-out", "opt out"),
            ("إِلْغَاءُ الاِشْتِرَاكِ", "الغاء الاشتراك"),
            ("الغاء الأشتراك", "الغاء الاشتراك"),
            ("إيقافـــ", "ايقاف"),
            ("\u{202b}إيقاف\u{202c}", "ايقاف"),
            ("إيقاف الرسائل", "ايقاف الرسايل"),
            ("İPTAL", "iptal"),
            ("ÇIK", "cik"),
            ("ARRÊT", "arret"),
            ("Désabonner", "desabonner"),
            ("रोकें", "रोकें"),
            ("بند کریں", "بند كريں"),
            ("don't stop", "dont stop"),
            ("stop it, I like it", "stop it i like it"),
            ("وقف السيارة عند المحل؟", "وقف السياره عند المحل"),
        ] {
            assert_eq!(fold(input), folded, "{input}");
        }
    }

    /// Case, ligatures, digits, joiners and apostrophes of many scripts fold as a reader would expect.
    #[test]
    fn spelling_variants_fold_together() {
        for (one, other) in [
            ("STRASSE", "straße"),
            ("Straẞe", "strasse"),
            ("ΣΤΟΠ ΌΧΙ ΤΈΛΟΣ", "στοπ οχι τελος"),
            ("Cœur Æ Ø", "coeur ae o"),
            ("s'abonner", "s’abonner"),
            ("s´abonner", "sabonner"),
            ("D\u{e9}marrer", "De\u{301}marrer"),
            ("٠١٢٣ ۴۵۶ ७८९", "0123 456 789"),
            ("ⓢⓣⓞⓟ", "stop"),
            ("*STOP*\n", "_stop_"),
            ("ﻻ ﺗﺮﺳﻞ", "لا ترسل"),
            ("نہیں", "نهيں"),
            ("ÇIKIŞ", "çıkış"),
        ] {
            assert_eq!(fold(one), fold(other), "{one}");
        }
        assert_ne!(fold("रोको"), fold("रोके"));
    }

    /// Long texts, empty ones and sentences are no candidates; padding of any length does not matter.
    #[test]
    fn candidates_are_short() {
        assert_eq!(fold_candidate(&format!("  STOP{} 🛑🛑", "!".repeat(100_000))).as_deref(), Some("stop"));
        assert_eq!(fold_candidate(&"a".repeat(40)).as_deref(), Some(&*"a".repeat(40)));
        for text in [
            "".to_owned(),
            " \n🛑!?".to_owned(),
            "a".repeat(41),
            "a b c d e f".to_owned(),
            format!("STOP {}", "x".repeat(10_000_000)),
            format!("STOP {}", "하".repeat(41)),
        ] {
            assert_eq!(fold_candidate(&text), None);
        }
        assert_eq!(fold_candidate("a b c d e").as_deref(), Some("a b c d e"));
        let syllables = "\u{1112}\u{1161}\u{11ab}".repeat(KEYWORD_CHARS_MAX);
        assert_eq!(fold_candidate(&syllables), Some("한".repeat(KEYWORD_CHARS_MAX)));
        assert!(fold(&"é".repeat(1_000_000)).len() <= FOLD_BYTES_MAX);
    }

    /// What folding deletes or makes a space of does not count, however much there is, before, behind or
    /// within the word: a message has up to 4,096 characters.
    #[test]
    fn padding_does_not_count() {
        for padding in [
            " ", "\u{200b}", "😀", "!", "\u{64b}", "\u{301}", "\u{640}", "\u{a0}", "—", "’", "\n", "👍🏽",
            "\u{fe0f}", "¿",
        ] {
            let padding = padding.repeat(4_090);
            for text in
                [format!("stop{padding}"), format!("{padding}stop"), format!("{padding}stop{padding}")]
            {
                assert_eq!(
                    fold_candidate(&text).as_deref(),
                    Some("stop"),
                    "{:?}",
                    &text[..8.min(text.len())].escape_unicode().to_string()
                );
            }
            assert_eq!(
                fold_candidate(&format!("{padding}please stop it now and never again{padding}")),
                None
            );
        }
        assert_eq!(fold_candidate(&format!("stop{}all", " 😀".repeat(2_000))).as_deref(), Some("stop all"));
        assert_eq!(fold_candidate(&format!("s{}top", "\u{200b}".repeat(4_000))).as_deref(), Some("stop"));
    }

    /// Folding any single character twice is folding it once: all of Unicode's first two planes.
    #[test]
    fn folding_each_character_is_idempotent() {
        for character in (0..0x2_0000).filter_map(char::from_u32) {
            let once = fold(character.encode_utf8(&mut [0; 4]));
            assert_eq!(fold(&once), once, "U+{:04X}", u32::from(character));
        }
    }

    proptest! {
        /// Folding twice is folding once, and the result is tidy, whatever the text.
        #[test]
        fn folding_is_idempotent(text in any::<String>()) {
            let once = fold(&text);
            prop_assert_eq!(fold(&once), once.clone());
            prop_assert!(!once.starts_with(' ') && !once.ends_with(' ') && !once.contains("  "));
        }

        /// The same over characters that compose, case-fold and vanish beside each other.
        #[test]
        fn folding_of_difficult_neighbours_is_idempotent(
            text in "[a-zA-ZßẞİıΣςé'’´`\u{301}\u{307}\u{345}\u{93c}नकर\u{200d}\u{1100}\u{1161}\u{11a8}か\u{3099}أةى\u{654}\u{640}１٣!_ ]{0,24}"
        ) {
            let once = fold(&text);
            prop_assert_eq!(fold(&once), once);
        }

        /// A candidate is the folded text: trimming the padding first changes nothing.
        #[test]
        fn candidate_is_the_folded_text(text in "\\PC{0,30}|[a-zßİıéœ'’´`\u{301}\u{94d}\u{93c}नकأةى\u{654}\u{640}\u{200d}㎏①¨½ⓢ🄰🈁١3!_ ]{0,24}") {
            let folded = fold(&text);
            let fits = !folded.is_empty() && folded.chars().count() <= 40 && folded.split(' ').count() <= 5;
            prop_assert_eq!(fold_candidate(&text), fits.then_some(folded));
        }
    }
}
