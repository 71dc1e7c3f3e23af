import FoundationEssentials
import IntFlashAttention
import Mustache

/// The HTML form of the demo's table: one file, no script, nothing loaded from elsewhere.
enum DemoReport {
  /// Where it goes unless a path is given.
  static let usualPath = "intfa-report.html"

  /// Writes the page.
  ///
  /// - Throws: `Failure` with status `internalError` where the file cannot be written.
  static func write(_ rows: DemoRows, heading: String, to path: String) throws {
    let page = try html(rows, heading: heading)
    do {
      try Interruption.held {
        try Data(page.utf8).write(to: URL(filePath: path), options: .atomic)
      }
    } catch {
      throw Failure(.internalError, "\(path): cannot write the report: \(error)")
    }
  }

  /// The page.
  static func html(_ rows: DemoRows, heading: String) throws -> String {
    let report = rows.report
    let slowest = rows.rows.map(\.timing.least).max() ?? 1
    let worst = rows.rows.map(\.error.relativeL1).max() ?? 1
    let shown = report.columns.indices.filter { report.columns[$0].title != nil }
    let lines = rows.rows.enumerated().map { index, row in
      [
        "cells": shown.dropFirst().map { report.tableText(row: index, column: $0) },
        "name": row.precision.rawValue,
        "timeWidth": width(row.timing.least, of: slowest),
        "errorWidth": width(row.error.relativeL1, of: worst),
        "isDefault": row.precision == .int8,
      ] as [String: Any]
    }
    let first = rows.rows.first?.plan.description ?? ""
    let page: [String: Any] = [
      "version": Intfa.version,
      "paragraphs": heading.split(separator: "\n").map(String.init),
      "titles": shown.dropFirst().map { report.columns[$0].title ?? "" },
      "rows": lines,
      "plan": first,
      "planName": rows.rows.first?.precision.rawValue ?? "",
    ]
    return try MustacheTemplate(string: template).render(page)
  }

  /// A bar's length in percent, never invisible.
  private static func width(_ value: Double, of largest: Double) -> String {
    Decimal.fixed(max(100 * value / largest, 0.2), 1)
  }

  private static let template = """
    <!DOCTYPE html>
    <html lang="en">
    <head>
    <meta charset="utf-8">
    <meta name="viewport" content="width=device-width">
    <title>intfa demo</title>
    <style>
    body { font: 15px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto;
      padding: 0 1rem; color: #222; background: #fff; }
    .scroll { overflow-x: auto; }
    table { border-collapse: collapse; width: 100%; }
    th, td { padding: .3rem .6rem; text-align: right; border-bottom: 1px solid #ddd;
      font-variant-numeric: tabular-nums; white-space: nowrap; }
    th:first-child, td:first-child { text-align: left; }
    td.bars { min-width: 12rem; }
    .bar { height: .5rem; margin: .15rem 0; border-radius: 2px; }
    .time { background: #2f6fb2; }
    .error { background: #c8553d; }
    .default { font-weight: 600; }
    pre { background: #f4f4f4; padding: .8rem; overflow-x: auto; }
    small { color: #666; }
    </style>
    </head>
    <body>
    <h1>Attention in every precision</h1>
    {{#paragraphs}}<p>{{.}}</p>
    {{/paragraphs}}
    <div class="scroll">
    <table>
    <thead><tr><th>precision</th>{{#titles}}<th>{{.}}</th>{{/titles}}<th>time and error</th></tr></thead>
    <tbody>
    {{#rows}}
    <tr{{#isDefault}} class="default"{{/isDefault}}><td>{{name}}</td>\
    {{#cells}}<td>{{.}}</td>{{/cells}}<td class="bars">\
    <div class="bar time" style="width: {{timeWidth}}%" title="time"></div>\
    <div class="bar error" style="width: {{errorWidth}}%" title="error"></div></td></tr>
    {{/rows}}
    </tbody>
    </table>
    </div>
    <p>Times are the shortest of several whole calls, quantisation included; speed is how many times
    faster than float32 and bfloat16 in the same run. Errors are relative L1 and cosine against
    float64 attention on the same inputs. K/V: bytes that a token's key and value take per key/value
    head. Blue bars: time. Red bars: error.</p>
    <h2>Plan of {{planName}}</h2>
    <pre>{{plan}}</pre>
    <p><small>intfa {{version}}. The same figures as JSON: intfa demo --format json</small></p>
    </body>
    </html>

    """
}
