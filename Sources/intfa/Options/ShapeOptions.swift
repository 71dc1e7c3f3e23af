import ArgumentParser
import IntFlashAttention

/// Counts and sizes; a list gives one result per entry.
struct ShapeOptions: ParsableArguments {
  @Option(help: ArgumentHelp("Sequences.", valueName: "n"))
  var batch = 1

  @Option(help: ArgumentHelp("Query heads.", valueName: "n"))
  var queryHeads = 8

  @Option(
    help: ArgumentHelp("Key/value heads, of which query heads are a multiple.", valueName: "n")
  )
  var kvHeads = 8

  @Option(
    help: ArgumentHelp(
      "Tokens: keys, and queries where --query-length is not given.",
      valueName: "n,…"
    ),
    transform: CommaList<Int>.counts
  )
  var lengths = CommaList([1024, 2048])

  @Option(help: ArgumentHelp("Query tokens; as many as keys unless given.", valueName: "n"))
  var queryLength: Int?

  @Option(
    help: ArgumentHelp("Width of queries and keys, 1…256.", valueName: "n,…"),
    transform: CommaList<Int>.counts
  )
  var headDims = CommaList([64, 128])

  @Option(help: ArgumentHelp("Width of values; as that of keys unless given.", valueName: "n"))
  var valueDim: Int?

  func validate() throws {
    for (name, value) in [
      ("batch", batch), ("query-heads", queryHeads), ("kv-heads", kvHeads),
      ("query-length", queryLength ?? 1), ("value-dim", valueDim ?? 1),
    ] where value < 1 {
      throw ValidationError("--\(name) is \(value); it must be at least 1")
    }
    guard queryHeads.isMultiple(of: kvHeads) else {
      throw ValidationError(
        "--query-heads is \(queryHeads) and --kv-heads is \(kvHeads); the first must be a multiple "
          + "of the second"
      )
    }
    let allowed = AttentionShape.supportedDimensions
    for (name, values) in [("head-dims", headDims.values), ("value-dim", [valueDim ?? 1])] {
      for value in values where !allowed.contains(value) {
        throw ValidationError(
          "--\(name) is \(value); it must be between \(allowed.lowerBound) and "
            + "\(allowed.upperBound)"
        )
      }
    }
  }

  /// A shape per width and length.
  ///
  /// - Parameter decode: whether there is one query, whatever the length.
  /// - Returns: the shapes, those of the first width first.
  /// - Throws: `AttentionError` for sizes whose product overflows.
  func shapes(decode: Bool = false) throws(AttentionError) -> [AttentionShape] {
    var shapes: [AttentionShape] = []
    for dimension in headDims.values {
      for length in lengths.values {
        shapes.append(
          try AttentionShape(
            batchCount: batch,
            queryHeadCount: queryHeads,
            keyValueHeadCount: kvHeads,
            queryLength: decode ? 1 : queryLength ?? length,
            keyValueLength: length,
            headDimension: dimension,
            valueDimension: valueDim
          )
        )
      }
    }
    return shapes
  }
}
