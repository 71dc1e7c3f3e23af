/// One value of a report.
package enum Cell: Hashable, Sendable {
  case text(String)
  case list([String])
  case integers([Int])
  case integer(Int)
  case number(Double)
  case flag(Bool)
  /// Not known, or not applicable.
  case none

  /// A float32 with the digits that it needs and no more.
  package static func float(_ value: Float) -> Cell { .number(Double("\(value)") ?? Double(value)) }

  /// A number that may be missing.
  package static func optional(_ value: Double?) -> Cell { value.map(Cell.number) ?? .none }
}

/// What every row of a report has at one place.
package struct Column: Hashable, Sendable {
  /// How numbers are written in a table; JSON and CSV always have them in full.
  package enum Style: Hashable, Sendable {
    /// As it is.
    case plain
    /// With this many decimals, after multiplication.
    case fixed(Int, times: Double = 1)
    /// Times 100, with this many decimals and a percent sign.
    case percent(Int)
  }

  /// The key in JSON and CSV: documented, stable.
  package let key: String
  /// The heading in a table; nil leaves the column out there.
  package let title: String?
  package let style: Style

  package init(_ key: String, _ title: String?, _ style: Style = .plain) {
    self.key = key
    self.title = title
    self.style = style
  }
}

/// Rows that can be printed as a table, as JSON and as CSV.
package struct Report: Sendable {
  package let columns: [Column]
  package private(set) var rows: [[Cell]] = []

  /// A report without rows.
  package init(_ columns: [Column]) {
    self.columns = columns
  }

  /// Adds a row.
  ///
  /// - Precondition: one cell per column.
  package mutating func append(_ row: [Cell]) {
    precondition(row.count == columns.count, "one cell per column")
    rows.append(row)
  }

  /// The report in this format, without the new line at its end.
  ///
  /// - Parameters:
  ///   - format: table, JSON or CSV.
  ///   - upright: whether a table has one line per column and row instead of one per row.
  /// - Returns: all lines.
  package func text(_ format: OutputFormat, upright: Bool = false) -> String {
    switch format {
    case .table: upright ? uprightTable() : table()
    case .json: json()
    case .csv: csv()
    }
  }

  /// The value of a column in a row, as a table has it.
  func tableText(row: Int, column: Int) -> String {
    let (cell, style) = (rows[row][column], columns[column].style)
    switch cell {
    case .text(let text): return text
    case .list(let items): return items.joined(separator: ", ")
    case .integers(let items): return items.map(String.init).joined(separator: ", ")
    case .integer(let value): return String(value)
    case .flag(let value): return value ? "yes" : "no"
    case .none: return "-"
    case .number(let value):
      switch style {
      case .plain: return Decimal.plain(value)
      case .fixed(let digits, let factor): return Decimal.fixed(value * factor, digits)
      case .percent(let digits): return Decimal.fixed(100 * value, digits) + " %"
      }
    }
  }
}

/// Numbers as people read them, the same on every system and in every language.
package enum Decimal {
  /// `value` with `digits` decimals.
  ///
  /// What is not zero but would look so is written as less than the last place.
  package static func fixed(_ value: Double, _ digits: Int) -> String {
    guard value.isFinite else { return value.isNaN ? "nan" : value < 0 ? "-inf" : "inf" }
    let unit = (0..<digits).reduce(1.0) { product, _ in product * 10 }
    let scaled = (value.magnitude * unit).rounded()
    guard scaled < 1e15 else { return "\(value)" }
    guard scaled > 0 || value == 0 else { return (value < 0 ? ">-" : "<") + place(1, digits) }
    return (value < 0 ? "-" : "") + place(Int(scaled), digits)
  }

  private static func place(_ scaled: Int, _ digits: Int) -> String {
    guard digits > 0 else { return String(scaled) }
    let text = String(scaled)
    let padded = String(repeating: "0", count: max(digits + 1 - text.count, 0)) + text
    return padded.dropLast(digits) + "." + padded.suffix(digits)
  }

  /// The shortest text that gives `value` again, without the ".0" of a whole number.
  package static func plain(_ value: Double) -> String {
    let text = "\(value)"
    return text.hasSuffix(".0") ? String(text.dropLast(2)) : text
  }
}
