extension Report {
  /// An array with an object per row, keys in the order of the columns.
  ///
  /// What is unknown, and what is no number, is null.
  func json() -> String {
    guard !rows.isEmpty else { return "[]" }
    let objects = rows.map { row in
      let members = zip(columns, row).map { "\(Self.quoted($0.key)): \(Self.json($1))" }
      return "  {\(members.joined(separator: ", "))}"
    }
    return "[\n\(objects.joined(separator: ",\n"))\n]"
  }

  private static func json(_ cell: Cell) -> String {
    switch cell {
    case .text(let text): quoted(text)
    case .list(let items): "[\(items.map(quoted).joined(separator: ", "))]"
    case .integers(let items): "[\(items.map(String.init).joined(separator: ", "))]"
    case .integer(let value): String(value)
    case .number(let value): value.isFinite ? Decimal.plain(value) : "null"
    case .flag(let value): value ? "true" : "false"
    case .none: "null"
    }
  }

  /// A JSON string.
  private static func quoted(_ text: String) -> String {
    var result = "\""
    for scalar in text.unicodeScalars {
      switch scalar {
      case "\"": result += "\\\""
      case "\\": result += "\\\\"
      case "\n": result += "\\n"
      case "\t": result += "\\t"
      case _ where scalar.value < 0x20:
        let digits = String(scalar.value, radix: 16)
        result += "\\u" + String(repeating: "0", count: 4 - digits.count) + digits
      default: result.unicodeScalars.append(scalar)
      }
    }
    return result + "\""
  }

  /// A line of keys and a line per row (RFC 4180); what is unknown is empty, lists have spaces.
  func csv() -> String {
    let lines = rows.map { row in row.map(Self.csv) }
    return ([columns.map(\.key)] + lines)
      .map { $0.map(Self.csvField).joined(separator: ",") }
      .joined(separator: "\n")
  }

  private static func csv(_ cell: Cell) -> String {
    switch cell {
    case .text(let text): text
    case .list(let items): items.joined(separator: " ")
    case .integers(let items): items.map(String.init).joined(separator: " ")
    case .integer(let value): String(value)
    case .number(let value): Decimal.plain(value)
    case .flag(let value): value ? "true" : "false"
    case .none: ""
    }
  }

  private static func csvField(_ text: String) -> String {
    let special: Set<Character> = ["\"", ",", "\n", "\r", "\r\n"]
    guard text.contains(where: special.contains) else { return text }
    let doubled = text.map { $0 == "\"" ? "\"\"" : String($0) }.joined()
    return "\"\(doubled)\""
  }
}
