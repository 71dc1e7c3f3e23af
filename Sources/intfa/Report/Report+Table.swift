extension Report {
  /// Columns side by side: text to the left, numbers to the right.
  func table() -> String {
    let shown = columns.indices.filter { columns[$0].title != nil }
    let titles = shown.map { columns[$0].title ?? "" }
    let lines = rows.indices.map { row in shown.map { tableText(row: row, column: $0) } }
    let widths = shown.indices.map { place in
      lines.reduce(titles[place].count) { max($0, $1[place].count) }
    }
    func line(_ cells: [String]) -> String {
      let padded = cells.indices.map { place in
        let room = String(repeating: " ", count: widths[place] - cells[place].count)
        return isLeftAligned(shown[place]) ? cells[place] + room : room + cells[place]
      }
      return padded.joined(separator: "  ").trimmedAtEnd
    }
    let rule = widths.map { String(repeating: "-", count: $0) }.joined(separator: "  ")
    return ([line(titles), rule] + lines.map(line)).joined(separator: "\n")
  }

  /// Every row as lines of heading and value.
  func uprightTable() -> String {
    let shown = columns.indices.filter { columns[$0].title != nil }
    let titles = shown.map { columns[$0].title ?? "" }
    let width = titles.map(\.count).max() ?? 0
    return rows.indices.map { row in
      zip(shown, titles).map { column, title in
        let room = String(repeating: " ", count: width - title.count)
        return "\(title)\(room)  \(tableText(row: row, column: column))".trimmedAtEnd
      }.joined(separator: "\n")
    }.joined(separator: "\n\n")
  }

  private func isLeftAligned(_ column: Int) -> Bool {
    rows.contains { row in
      switch row[column] {
      case .text, .list, .integers, .flag: true
      case .integer, .number, .none: false
      }
    }
  }
}

extension String {
  /// Without spaces at the end.
  fileprivate var trimmedAtEnd: String {
    guard let last = lastIndex(where: { $0 != " " }) else { return "" }
    return String(self[...last])
  }
}
