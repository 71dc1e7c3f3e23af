import AttentionTestSupport
import Foundation
import IntFlashAttention
import TensorFiles
import Testing

@Suite struct QuantizeTests {
  /// What quantising operands and running attention on their codes gave.
  private struct RoundTrip {
    let report: CommandRun
    let shape: [Int]
    let output: [Float]
  }

  private func roundTrip(
    _ inputs: TestInputs,
    _ arguments: [String],
    rank: Int = 4,
    layout: TensorLayout = .batchHeadsTokens
  ) throws -> RoundTrip {
    let folder = try TemporaryFolder()
    let (plain, codes) = (folder.path("in.safetensors"), folder.path("q.safetensors"))
    try InputFiles.write(
      inputs,
      to: plain,
      rank: rank,
      layout: layout,
      metadata: ["causal": "1", "scale": "0.3"]
    )
    let report = try CommandRun(
      ["quantize", plain, "-o", codes, "--format", "json", "--layout", layout.rawValue] + arguments
    )
    #expect(report.status == 0, "\(report.messages)")
    let output = folder.path("out.safetensors")
    let run = try CommandRun("run", codes, "-o", output, "--precision", "float32")
    #expect(run.status == 0, "\(run.messages)")
    let tensor = try SafetensorsFile(path: output).tensor("o")
    return RoundTrip(report: report, shape: tensor.shape, output: tensor.copyFloats())
  }

  /// Attention on the operands that a quantiser leaves.
  private func expected(_ inputs: TestInputs, _ quantizers: [Quantizer]) throws -> [Float] {
    var inputs = inputs
    let shape = inputs.shape
    func through(_ quantizer: Quantizer, _ values: [Float], _ shape: [Int]) throws -> [Float] {
      let tensor = try Tensor(values, shape: shape)
      let quantized = try quantizer.quantize(tensor.view)
      return try quantized.dequantized().copyFloats()
    }
    inputs.query = try through(quantizers[0], inputs.query, shape.queryShape)
    inputs.key = try through(quantizers[1], inputs.key, shape.keyShape)
    inputs.value = try through(quantizers[2], inputs.value, shape.valueShape)
    let options = AttentionOptions(softmaxScale: 0.3, mask: .causal)
    return try inputs.attend(Precision.float32.recipe, options, on: CPUBackend()).output
  }

  @Test func codesHoldWhatTheQuantizerMakes() throws {
    let inputs = TestInputs(try InputFiles.shape(), .outlierChannel)
    let progressive = Quantizer(.int4Progressive(tokens: 1, channels: 16), rotates: true)
    let cases: [([String], [Quantizer])] = [
      (
        [],
        [
          Quantizer(.int8(.token), rotates: true),
          Quantizer(.int8(.token), centers: true, rotates: true),
          Quantizer(.int8(.token), rotates: true),
        ]
      ),
      (
        ["--code-type", "int4Progressive", "--center", "none"],
        [
          progressive, Quantizer(.int4Progressive(tokens: 32, channels: 1), rotates: true),
          progressive,
        ]
      ),
      (
        [
          "--code-type", "float8", "--granularity", "channel", "--rotate", "none", "--center",
          "all",
        ],
        .init(repeating: Quantizer(.float8(.channel), centers: true), count: 3)
      ),
      (
        ["--code-type", "int4", "--granularity", "block:7", "--rotate", "q,v", "--center", "none"],
        [
          Quantizer(.int4(.block(7)), rotates: true), Quantizer(.int4(.block(7))),
          Quantizer(.int4(.block(7)), rotates: true),
        ]
      ),
      (
        ["--code-type", "int4Clipped", "--center", "none"],
        .init(repeating: Quantizer(.int4Clipped, rotates: true), count: 3)
      ),
      (
        ["--granularity", "tensor", "--rotate", "none", "--center", "none"],
        .init(repeating: Quantizer(.int8(.tensor)), count: 3)
      ),
    ]
    for (arguments, quantizers) in cases {
      let result = try roundTrip(inputs, arguments)
      #expect(try result.output == expected(inputs, quantizers), "\(arguments)")
      #expect(result.shape == inputs.shape.outputShape)
    }
  }

  @Test(arguments: [3, 4])
  func rankAndLayoutAreKept(rank: Int) throws {
    // An odd dimension: rows of 4-bit codes end in the middle of a byte.
    let inputs = TestInputs(try InputFiles.shape(dimension: 15, valueDimension: 15))
    let arguments = ["--code-type", "int4", "--center", "none", "--rotate", "none"]
    let plain = try roundTrip(inputs, arguments, rank: rank)
    let permuted = try roundTrip(
      inputs,
      arguments,
      rank: rank,
      layout: .batchTokensHeads
    )
    #expect(plain.shape.count == rank)
    #expect(permuted.shape == plain.shape)
    let quantizers = [Quantizer](repeating: Quantizer(.int4(.token)), count: 3)
    #expect(try plain.output == expected(inputs, quantizers))
    #expect(permuted.output == plain.output)
  }

  @Test func reportHasItsKeysAndErrors() throws {
    let inputs = TestInputs(try InputFiles.shape())
    let report = try roundTrip(inputs, []).report
    #expect(
      report.firstKeys == [
        "tensor", "shape", "codeType", "granularity", "centered", "rotated", "relativeL1",
        "cosine", "rmse", "bytesBefore", "bytesAfter",
      ]
    )
    let objects = try report.objects()
    #expect(objects.compactMap { $0["tensor"] as? String } == ["q", "k", "v"])
    for object in objects {
      let error = try #require(object["relativeL1"] as? Double)
      #expect(error > 0 && error < 0.01)
    }
  }

  @Test func equalInputsGiveEqualFiles() throws {
    let folder = try TemporaryFolder()
    let path = folder.path("in.safetensors")
    try InputFiles.write(TestInputs(try InputFiles.shape()), to: path)
    for name in ["a", "b"] {
      #expect(try CommandRun("quantize", path, "-o", folder.path(name)).status == 0)
    }
    #expect(try folder.bytes("a") == folder.bytes("b"))
  }

  @Test func wrongNamesAreRefused() throws {
    let folder = try TemporaryFolder()
    let path = folder.path("in.safetensors")
    try InputFiles.write(TestInputs(try InputFiles.shape()), to: path)
    let unknown = try CommandRun("quantize", path, "-o", folder.path("o"), "--tensors", "w")
    #expect(unknown.status == 65)
    #expect(unknown.messages.contains("no tensor \"w\""))
    let center = try CommandRun("quantize", path, "-o", folder.path("o"), "--center", "w")
    #expect(center.status == 64)
    #expect(center.messages.contains("--center names 'w'"))
  }

  /// A quantised file whose metadata was changed by someone.
  @Test(arguments: [
    ("k.recipe", "int8 token centered polished", "metadata k.recipe"),
    ("k.recipe", "int8 block:9223372036854775807 centered", "metadata k.recipe"),
    ("k.recipe", "int8 block:64 centered", "scales have shape"),
    ("k.recipe", "int4 token centered", "packed 4-bit integers are stored as U8"),
    ("k.shape", "1,2,-3,16", "metadata k.shape"),
    ("k.shape", "1,2,90,17", "metadata k.shape says"),
    ("k.shape", "2,90", "metadata k.shape"),
  ])
  func lyingMetadataIs65(key: String, value: String, words: String) throws {
    let folder = try TemporaryFolder()
    let inputs = TestInputs(try InputFiles.shape())
    let path = folder.path("in.safetensors")
    try InputFiles.write(inputs, to: path)
    let codes = folder.path("q.safetensors")
    #expect(try CommandRun("quantize", path, "-o", codes).status == 0)
    let file = try SafetensorsFile(path: codes)
    var writer = SafetensorsWriter(metadata: file.metadata.merging([key: value]) { $1 })
    for name in file.tensorNames {
      let tensor = try file.tensor(name)
      writer.add(name, tensor.view)
    }
    try writer.write(to: codes)
    let run = try CommandRun("run", codes, "-o", folder.path("out.safetensors"))
    #expect(run.status == 65)
    #expect(run.messages.contains(words), "\(run.messages)")
  }
}
