import ArgumentParser
import IntFlashAttention
import TensorFiles

/// `intfa quantize`: codes and scales of the tensors of a file.
struct Quantize: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Write the codes and scales of a file's tensors and print the error made.",
    discussion: """
      Unless told otherwise q, k and v become INT8 with a scale per token, after a Hadamard \
      rotation, k after its mean over the tokens is subtracted. A tensor NAME becomes NAME.codes \
      and NAME.scales, with centring NAME.means, and for int4Progressive NAME.steps and \
      NAME.offsets; metadata NAME.recipe and NAME.shape say how to turn them back, which 'intfa \
      run' does. Codes are stored heads first; 4-bit ones as U8, two to a byte. Other metadata is \
      carried over, other tensors are not.

      JSON keys: tensor shape codeType granularity centered rotated relativeL1 cosine rmse \
      bytesBefore bytesAfter.
      """
  )

  @Argument(help: ArgumentHelp("A .safetensors file.", valueName: "in.safetensors"))
  var input: String

  @Option(name: [.customShort("o"), .customLong("output")], help: "The file to write.")
  var output: String

  @Option(
    help: ArgumentHelp(
      "Tensors to quantise; those of q, k and v that are there unless given.",
      valueName: "name,…"
    ),
    transform: CommaList<String>.names
  )
  var tensors: CommaList<String>?

  @Option(help: "Type of the codes.")
  var codeType: QuantizerText.CodeType = .int8

  @Option(
    help: ArgumentHelp(
      "What shares a scale: token, tensor (a head), channel or block:N (N tokens).",
      discussion: "For int8, int4 and float8; the other types have a scale per token.",
      valueName: "what"
    ),
    transform: Self.parseGranularity
  )
  var granularity: ScaleGranularity?

  @Option(
    help: ArgumentHelp(
      "Groups of int4Progressive; 32x1 for k and 1x16 for others unless given.",
      valueName: "tokensxchannels"
    ),
    transform: Groups.init
  )
  var groups: Groups?

  @Option(
    help: ArgumentHelp(
      "Tensors to subtract the mean over the tokens from, all or none; k unless given.",
      valueName: "name,…"
    ),
    transform: CommaList<String>.names
  )
  var center: CommaList<String>?

  @Option(
    help: ArgumentHelp("Tensors to rotate, all or none; all unless given.", valueName: "name,…"),
    transform: CommaList<String>.names
  )
  var rotate: CommaList<String>?

  @Option(help: "Order of dimensions in IN: batch, heads, tokens, dimension.")
  var layout: TensorLayout = .batchHeadsTokens

  @OptionGroup(title: "Output") var out: OutputOptions

  /// Tokens and channels of a group.
  struct Groups {
    let tokens: Int
    let channels: Int

    init(_ text: String) throws {
      guard let groups = QuantizerText.groups(text) else {
        throw ValidationError("groups are TOKENSxCHANNELS, both at least 1, for instance 32x1")
      }
      (tokens, channels) = groups
    }
  }

  static func parseGranularity(_ text: String) throws -> ScaleGranularity {
    guard let granularity = QuantizerText.granularity(text) else {
      throw ValidationError(
        "a granularity is token, tensor, channel or block:N with N of at least 1"
      )
    }
    return granularity
  }

  func validate() throws {
    try OutputPath.validate(output)
    let hasGranularity = [.int8, .int4, .float8].contains(codeType)
    if granularity != nil && !hasGranularity {
      throw ValidationError(
        "--granularity is for int8, int4 and float8; \(codeType.rawValue) has a scale per token"
      )
    }
    if groups != nil && codeType != .int4Progressive {
      throw ValidationError("--groups is for int4Progressive, not for \(codeType.rawValue)")
    }
  }

  func run() throws {
    let file = try SafetensorsFile(path: input)
    let names = try tensorNames(in: file)
    let centered = try chosen(center, "--center", among: names) ?? ["k"]
    let rotated = try chosen(rotate, "--rotate", among: names) ?? Set(names)
    var report = Report(Self.columns)
    let progress = Progress(total: Double(names.count), quiet: out.quiet)
    var metadata = file.metadata
    var quantizers: [Quantizer] = []
    for name in names {
      let quantizer = Quantizer(
        format(of: name),
        centers: centered.contains(name),
        rotates: rotated.contains(name)
      )
      quantizers.append(quantizer)
      let shape = headsFirst(try file.entry(name).shape)
      metadata[QuantizedPart.recipe.key(name)] = QuantizerText.text(quantizer)
      metadata[QuantizedPart.shape.key(name)] = shape.map(String.init).joined(separator: ",")
    }
    var writer = SafetensorsWriter(metadata: metadata)
    for (name, quantizer) in zip(names, quantizers) {
      progress.advance(0, next: name)
      let tensor = try file.tensor(name)
      try blaming("\(input), tensor '\(name)'") {
        let view = try tensor.view.operand(layout)
        let quantized = try quantizer.quantize(view)
        try writer.add(name, quantized)
        let error = try quantized.error(against: view)
        report.append(cells(name, quantized, error, bytesBefore: tensor.byteCount))
      }
      progress.advance(1)
    }
    progress.clear()
    try Interruption.held { try writer.write(to: output) }
    out.print(report)
  }

  // MARK: Choices

  private func tensorNames(in file: borrowing SafetensorsFile) throws -> [String] {
    if let tensors { return tensors.values }
    let there = file.tensorNames
    let names = ["q", "k", "v"].filter(there.contains)
    guard names.isEmpty else { return names }
    throw Failure(
      .badData,
      "\(input): none of the tensors q, k and v is there; name others with --tensors"
    )
  }

  /// The tensors that an option names, or nil where it was not given.
  private func chosen(
    _ list: CommaList<String>?,
    _ option: String,
    among names: [String]
  ) throws -> Set<String>? {
    guard let list else { return nil }
    switch list.values {
    case ["all"]: return Set(names)
    case ["none"]: return []
    default:
      for name in list.values where !names.contains(name) {
        throw Failure(
          .usage,
          "\(option) names '\(name)', which is not quantised; it must be among "
            + names.joined(separator: ", ")
        )
      }
      return Set(list.values)
    }
  }

  private func format(of name: String) -> OperandFormat {
    switch codeType {
    case .int8: return .int8(granularity ?? .token)
    case .int4: return .int4(granularity ?? .token)
    case .float8: return .float8(granularity ?? .token)
    case .int4Clipped: return .int4Clipped
    case .int4Progressive:
      let usual = name == "k" ? (tokens: 32, channels: 1) : (tokens: 1, channels: 16)
      return .int4Progressive(
        tokens: groups?.tokens ?? usual.tokens,
        channels: groups?.channels ?? usual.channels
      )
    }
  }

  /// A shape of the file in the order in which codes are stored.
  private func headsFirst(_ shape: [Int]) -> [Int] {
    guard layout == .batchTokensHeads, shape.count >= 3 else { return shape }
    var shape = shape
    shape.swapAt(shape.count - 3, shape.count - 2)
    return shape
  }

  // MARK: Report

  private static let columns = [
    Column("tensor", "tensor"),
    Column("shape", "shape"),
    Column("codeType", "codes"),
    Column("granularity", "scale per"),
    Column("centered", "centered"),
    Column("rotated", "rotated"),
    Column("relativeL1", "rel. L1", .percent(3)),
    Column("cosine", "cosine", .fixed(6)),
    Column("rmse", "RMSE", .fixed(6)),
    Column("bytesBefore", "bytes before"),
    Column("bytesAfter", "after"),
  ]

  private func cells(
    _ name: String,
    _ tensor: borrowing QuantizedTensor,
    _ error: AccuracyReport,
    bytesBefore: Int
  ) -> [Cell] {
    let words = QuantizerText.words(tensor.quantizer.format)
    return [
      .text(name),
      .integers(tensor.shape),
      .text(words[0]),
      .text(words[1]),
      .flag(tensor.quantizer.centers),
      .flag(tensor.quantizer.rotates),
      .number(error.relativeL1),
      .number(error.cosine),
      .number(error.rootMeanSquare),
      .integer(bytesBefore),
      .integer(tensor.byteCount),
    ]
  }
}

extension QuantizerText.CodeType: ExpressibleByArgument {}
