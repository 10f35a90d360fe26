//! `docs/engines.md` shows the recipes as they are here: neither is changed without the other.

#[path = "../../recipes/tests/support/pages.rs"]
mod pages;

#[test]
fn every_recipe_is_what_the_page_shows() {
    pages::check(&["engines.md"]);
}
