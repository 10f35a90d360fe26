//! The guide shows the recipes as they are here: neither is changed without the other.

#[path = "support/pages.rs"]
mod pages;

#[test]
fn every_recipe_is_what_the_guide_shows() {
    pages::check(&["guide.md", "guide-async.md"]);
}
