public import ArgumentParser
public import IntFlashAttention

/// Values between commas, as one argument.
struct CommaList<Element: Sendable>: Sendable, CustomStringConvertible {
  let values: [Element]
  /// As it is written on the command line.
  let description: String

  /// Splits `text` at commas and turns each part into a value.
  ///
  /// - Throws: `ValidationError` saying what a part that is no value must be.
  init(_ text: String, each rule: String, _ parse: (String) -> Element?) throws {
    values = try text.split(separator: ",", omittingEmptySubsequences: false).map { part in
      guard let value = parse(String(part)) else {
        throw ValidationError("'\(part)' must be \(rule)")
      }
      return value
    }
    description = text
  }

  /// These values.
  init(_ values: [Element], description: String) {
    self.values = values
    self.description = description
  }
}

extension CommaList<Int> {
  /// Whole numbers of at least 1.
  static func counts(_ text: String) throws -> Self {
    try Self(text, each: "a whole number of at least 1") { part in
      Int(part).flatMap { $0 >= 1 ? $0 : nil }
    }
  }

  /// These numbers.
  init(_ values: [Int]) {
    self.init(values, description: values.map(String.init).joined(separator: ","))
  }
}

extension CommaList<Precision> {
  /// Names of precisions.
  static func precisions(_ text: String) throws -> Self {
    let names = Precision.allCases.map(\.rawValue).joined(separator: ", ")
    return try Self(text, each: "one of \(names)") { Precision(rawValue: $0) }
  }

  /// These precisions.
  init(_ values: [Precision]) {
    self.init(values, description: values.map(\.rawValue).joined(separator: ","))
  }
}

extension CommaList<String> {
  /// Names, none empty.
  static func names(_ text: String) throws -> Self {
    try Self(text, each: "a name") { $0.isEmpty ? nil : $0 }
  }

  /// Experiments of the paper.
  static func experiments(_ text: String) throws -> Self {
    let names = Paper.Experiment.allCases.map(\.rawValue)
    return try Self(text, each: "one of \(names.joined(separator: ", "))") {
      names.contains($0) ? $0 : nil
    }
  }

  /// These names.
  init(_ values: [String]) {
    self.init(values, description: values.joined(separator: ","))
  }
}

extension Precision: ExpressibleByArgument {}
extension TensorLayout: ExpressibleByArgument {}
