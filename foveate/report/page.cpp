#include "foveate/report/page.h"

#include <fmt/format.h>

#include "foveate/report/chart.h"
#include "foveate/report/text.h"
#include "foveate/report/window_view.h"

namespace foveate::report {
namespace {

constexpr std::string_view kPageStyle = R"(
:root{color-scheme:light dark;--page:#fff;--ink:#1d2127;--dim:#626a74;--line:#dfe3e8;--band:#f5f7f9;--warn:#9a3b00}
@media (prefers-color-scheme:dark){:root{--page:#15181c;--ink:#e6e9ed;--dim:#9aa3ad;--line:#31373e;--band:#1d2126;
--warn:#ffab73}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:70rem;padding:2rem 1.25rem 3rem;background:var(--page);color:var(--ink);
font:16px/1.55 system-ui,sans-serif}
h1{font-size:1.75rem;line-height:1.2;margin:0 0 .3rem}h2{font-size:1.2rem;margin:2.4rem 0 .6rem}
p,.glance{max-width:46rem}.lead{color:var(--dim);margin:0 0 1.4rem}
code{font:.9em ui-monospace,monospace;overflow-wrap:anywhere}
.scroll{overflow-x:auto}.warn{border-left:4px solid var(--warn);padding:.4rem .9rem;background:var(--band)}
table{border-collapse:collapse;font-size:.84rem;font-variant-numeric:tabular-nums}
th,td{padding:.4rem .65rem;text-align:right;white-space:nowrap;border-bottom:1px solid var(--line)}
th{font-weight:600;vertical-align:bottom;line-height:1.25}thead th{white-space:normal;min-width:4.2rem}
th[title]{cursor:help}.group th{color:var(--dim);font-weight:400;border-bottom:0;text-align:left;white-space:nowrap}
.first{text-align:left;position:sticky;left:0;background:var(--page)}td.first{white-space:normal;min-width:13rem}
td.first code{overflow-wrap:break-word}
.edge{border-left:1px solid var(--line)}.aside td{text-align:left;white-space:normal;color:var(--dim)}
.aside .bad{color:var(--warn)}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.25rem 1.2rem;font-size:.9rem;margin:0}dt{font-weight:600}
dd{margin:0}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:.2rem 1.4rem;margin:.4rem 0 0;padding:0 0 0 4rem;
font-size:.84rem}
figure{margin:1.2rem 0 0;max-width:56rem}figcaption{font-size:.9rem;color:var(--dim);margin-bottom:.4rem}
table code{font-size:.8rem}.pair{display:flex;flex-wrap:wrap;gap:1rem}.heat{margin:0}
.meanings{margin-top:1rem;color:var(--dim)}
footer{margin-top:2.8rem;padding-top:1rem;border-top:1px solid var(--line);color:var(--dim)}
footer dl{font-size:.84rem}
@media (max-width:40rem){dl{display:block}dd{margin-bottom:.5rem}.legend{padding:0}}
)";

}  // namespace

std::string page(std::string_view title, const std::string& main, const std::string& footer) {
  std::string html = "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n";
  // Nothing may be fetched or run, whatever a file name or a spec contains.
  html += "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\"/>\n";
  html += "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n<title>" + escape_html(title) +
          "</title>\n<style>";
  html += std::string(kPageStyle) + chart_style() + window_view_style() + "</style>\n</head>\n<body>\n<main>\n";
  return html + main + "</main>\n" + footer + "</body>\n</html>\n";
}

std::string code(std::string_view text) { return "<code>" + escape_html(text) + "</code>"; }

std::string figure(std::string_view caption, const std::string& chart, const std::string& legend) {
  if (chart.empty()) return "";
  return fmt::format("<figure><figcaption>{}</figcaption>\n<div class=\"scroll\">{}</div>{}</figure>\n", caption, chart,
                     legend);
}

}  // namespace foveate::report
