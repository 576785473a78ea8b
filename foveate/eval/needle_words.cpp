#include "foveate/eval/needle_words.h"

namespace foveate::eval {
namespace {

constexpr std::string_view kCities[] = {
    "Accra",     "Algiers",  "Amman",     "Amsterdam",    "Ankara",      "Antwerp",   "Athens",       "Auckland",
    "Baghdad",   "Baku",     "Bangkok",   "Barcelona",    "Basel",       "Beijing",   "Beirut",       "Belfast",
    "Belgrade",  "Berlin",   "Bern",      "Bilbao",       "Bogota",      "Bologna",   "Boston",       "Bratislava",
    "Bremen",    "Brisbane", "Bristol",   "Brussels",     "Bucharest",   "Budapest",  "Cairo",        "Calgary",
    "Canberra",  "Caracas",  "Cardiff",   "Casablanca",   "Chicago",     "Cologne",   "Copenhagen",   "Dakar",
    "Dallas",    "Damascus", "Delhi",     "Denver",       "Detroit",     "Dhaka",     "Doha",         "Dresden",
    "Dubai",     "Dublin",   "Durban",    "Edinburgh",    "Florence",    "Frankfurt", "Geneva",       "Genoa",
    "Ghent",     "Glasgow",  "Granada",   "Graz",         "Guadalajara", "Hamburg",   "Hanoi",        "Harare",
    "Havana",    "Helsinki", "Hobart",    "Houston",      "Istanbul",    "Jakarta",   "Johannesburg", "Kabul",
    "Kampala",   "Karachi",  "Kathmandu", "Khartoum",     "Kigali",      "Kingston",  "Krakow",       "Kyoto",
    "Lagos",     "Lahore",   "Leeds",     "Leipzig",      "Lima",        "Limerick",  "Lisbon",       "Liverpool",
    "Ljubljana", "London",   "Lusaka",    "Luxembourg",   "Lyon",        "Madrid",    "Malaga",       "Manchester",
    "Manila",    "Maputo",   "Marrakesh", "Marseille",    "Medellin",    "Melbourne", "Memphis",      "Miami",
    "Milan",     "Minsk",    "Mombasa",   "Monaco",       "Montreal",    "Moscow",    "Mumbai",       "Munich",
    "Nairobi",   "Naples",   "Odessa",    "Osaka",        "Oslo",        "Ottawa",    "Oxford",       "Palermo",
    "Panama",    "Paris",    "Perth",     "Philadelphia", "Porto",       "Prague",    "Pretoria",     "Quebec",
    "Quito",     "Rabat",    "Reykjavik", "Riga",         "Rome",        "Rotterdam", "Salzburg",     "Santiago",
    "Sarajevo",  "Seattle",  "Seoul",     "Seville",      "Shanghai",    "Singapore", "Sofia",        "Stockholm",
    "Stuttgart", "Sydney",   "Taipei",    "Tallinn",      "Tampa",       "Tbilisi",   "Tehran",       "Tirana",
    "Tokyo",     "Toronto",  "Toulouse",  "Trieste",      "Tripoli",     "Tunis",     "Turin",        "Valencia",
    "Vancouver", "Venice",   "Verona",    "Vienna",       "Vilnius",     "Warsaw",    "Wellington",   "Yerevan",
    "Zagreb",    "Zurich"};

// Short words that often stand inside other words ("lion" in "million") are left out: a generated hit is a substring
// match.
constexpr std::string_view kNouns[] = {
    "anchor",  "apple",    "autumn",  "badge",    "bamboo",   "banana",  "basket",   "battery", "beach",   "bicycle",
    "blanket", "bottle",   "branch",  "bread",    "brick",    "bridge",  "broom",    "bucket",  "butter",  "button",
    "cabin",   "cactus",   "camel",   "camera",   "candle",   "canoe",   "carpet",   "carrot",  "castle",  "cattle",
    "cedar",   "ceiling",  "chain",   "chair",    "chalk",    "cherry",  "chess",    "chicken", "circle",  "clock",
    "cloud",   "coconut",  "coffee",  "collar",   "copper",   "coral",   "cotton",   "cradle",  "cricket", "crystal",
    "cushion", "desert",   "diamond", "dinner",   "dolphin",  "donkey",  "door",     "dragon",  "drum",    "eagle",
    "elbow",   "elephant", "engine",  "envelope", "fabric",   "falcon",  "farm",     "feather", "fence",   "ferry",
    "finger",  "flame",    "flute",   "forest",   "fountain", "frog",    "garden",   "garlic",  "ginger",  "giraffe",
    "glove",   "goat",     "gold",    "grape",    "guitar",   "hammer",  "harbor",   "hawk",    "helmet",  "honey",
    "horse",   "island",   "ivory",   "jacket",   "jewel",    "kettle",  "kitchen",  "kitten",  "ladder",  "lamp",
    "lantern", "leather",  "lemon",   "letter",   "lizard",   "lobster", "magnet",   "maple",   "marble",  "market",
    "meadow",  "mirror",   "monkey",  "moon",     "mountain", "mouse",   "mushroom", "needle",  "ocean",   "olive",
    "onion",   "orange",   "orchard", "oyster",   "paddle",   "palace",  "paper",    "parrot",  "peach",   "peanut",
    "pearl",   "pencil",   "pepper",  "piano",    "pigeon",   "pillow",  "pine",     "planet",  "plum",    "pocket",
    "potato",  "prison",   "pumpkin", "puzzle",   "rabbit",   "radio",   "rainbow",  "ribbon",  "river",   "robot",
    "rocket",  "saddle",   "salmon",  "salt",     "sandwich", "school",  "shadow",   "sheep",   "shell",   "shield",
    "shirt",   "silk",     "silver",  "sister",   "smoke",    "snake",   "snow",     "soap",    "spider",  "spoon",
    "spring",  "squirrel", "statue",  "stone",    "storm",    "stove",   "sugar",    "summer",  "sunset",  "teacher",
    "temple",  "thread",   "thunder", "tiger",    "tomato",   "torch",   "tower",    "trumpet", "tunnel",  "turkey",
    "turtle",  "umbrella", "valley",  "velvet",   "village",  "violin",  "volcano",  "wagon",   "wallet",  "walnut",
    "weapon",  "whale",    "wheel",   "whistle",  "willow",   "window",  "winter",   "wolf",    "yarn",    "zebra"};

static_assert(std::size(kNouns) == kCommonNouns);

}  // namespace

std::span<const std::string_view> city_names() { return kCities; }

std::span<const std::string_view> common_nouns() { return kNouns; }

}  // namespace foveate::eval
