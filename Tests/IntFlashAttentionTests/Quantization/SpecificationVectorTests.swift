import AttentionTestSupport
import Foundation
import IntFlashAttention
import Testing

/// Reads a committed file of this test target.
func vectors(_ name: String, tokens: Int? = nil) throws -> VectorFile {
  let url = try #require(
    Bundle.module.url(forResource: name, withExtension: "safetensors", subdirectory: "Vectors")
  )
  return try VectorFile(path: url.path, tokens: tokens)
}

/// Both backends against vectors that an independent implementation of the formulas computed
/// (`Tests/Specification`).
@Suite struct SpecificationVectorTests {
  static let files = [
    "recipes_outliers", "recipes_offset", "recipes_ragged", "recipes_row_sum",
    "recipes_sliding_softcap",
  ]

  /// The rows of an output that a file stores.
  private func rows(_ values: [Float], of file: VectorFile, dimension: Int) -> [Float] {
    let shape = file.inputs.shape
    return (0..<shape.queryHeadCount).flatMap { head in
      file.rows.flatMap { row in
        let start = (head * shape.queryLength + row) * dimension
        return values[start..<start + dimension]
      }
    }
  }

  @Test(arguments: files, Precision.allCases)
  func outputsAreThoseOfTheSpecification(_ name: String, _ precision: Precision) throws {
    let file = try vectors(name)
    let expected = try #require(file.tensors["o.\(precision.rawValue)"])
    for backend in [ReferenceBackend(), CPUBackend()] as [any AttentionBackend] {
      if precision == .int4QueryKey && backend is CPUBackend { continue }
      let result = try file.inputs.attend(precision.recipe, file.options, on: backend)
      let dimension = file.inputs.shape.valueDimension
      let output = rows(result.output, of: file, dimension: dimension)
      let report = AccuracyReport(output, against: expected)
      // NumPy rotates and averages in another order, so a few codes differ by one.
      #expect(report.relativeL1 <= precision.gate.rounding + 2e-3, "\(backend.name)")
    }
  }

  @Test(arguments: files)
  func exactAttentionIsExact(_ name: String) throws {
    let file = try vectors(name)
    let expected = try #require(file.tensors["exact"])
    let logSumExp = try #require(file.tensors["exact_lse"])
    let result = try file.inputs.exact(file.options)
    let output = rows(result.output, of: file, dimension: file.inputs.shape.valueDimension)
    #expect(AccuracyReport(output, against: expected).relativeL1 <= 1e-6)
    for (a, b) in zip(result.logSumExp, logSumExp) where a != b {
      #expect((a - b).magnitude <= 1e-5 * max(1, b.magnitude))
    }
  }

  @Test(arguments: files)
  func logSumExpsAreThoseOfTheSpecification(_ name: String) throws {
    let file = try vectors(name)
    let expected = try #require(file.tensors["lse.int8"])
    for backend in [ReferenceBackend(), CPUBackend()] as [any AttentionBackend] {
      let result = try file.inputs.attend(Precision.int8.recipe, file.options, on: backend)
      for (a, b) in zip(result.logSumExp, expected) where a != b {
        #expect((a - b).magnitude <= Precision.int8.logSumExpRounding + 1e-3)
      }
    }
  }

  /// At most one code in a thousand differs, and by one.
  private func expectSameCodes(_ codes: [Float], _ expected: [Float], _ comment: Comment) {
    #expect(codes.count == expected.count, comment)
    let differences = zip(codes, expected).map { ($0 - $1).magnitude }
    #expect(differences.allSatisfy { $0 <= 1 }, comment)
    let differing = differences.reduce(0) { $0 + ($1 > 0 ? 1 : 0) }
    #expect(differing * 1000 <= expected.count, comment)
  }

  @Test(arguments: files)
  func codesAndScalesAreThoseOfTheSpecification(_ name: String) throws {
    let file = try vectors(name)
    let inputs = file.inputs
    let shape = inputs.shape
    let query = try Tensor(inputs.query, shape: shape.queryShape)
    let key = try Tensor(inputs.key, shape: shape.keyShape)
    let quantizer = Quantizer(.int8(.token), centers: true, rotates: true)
    let q = try quantizer.quantize(query.view)
    let codes = rows(q.codes.copyFloats(), of: file, dimension: shape.headDimension)
    expectSameCodes(codes, try #require(file.tensors["q8"]), "query")
    let k = try quantizer.quantize(key.view)
    expectSameCodes(k.codes.copyFloats(), try #require(file.tensors["k8"]), "key")
    // The specification's scales are those of the rotation without its factor 1/√p.
    let block = HadamardRotation(dimension: shape.headDimension).blockLength
    let factor = Float(block).squareRoot()
    for (scales, name) in [(q.scales, "sq"), (k.scales, "sk")] {
      let expected = try #require(file.tensors[name])
      let worst = zip(scales.values, expected).reduce(Float(0)) {
        max($0, ($1.0 * factor / $1.1 - 1).magnitude)
      }
      #expect(worst <= 1e-5)
    }

    let reciprocals = try #require(file.tensors["n"])
    let value = try Tensor(inputs.value, shape: shape.valueShape)
    var valueCodes: [Float] = []
    for head in 0..<shape.keyValueHeadCount {
      var rows = HeadRows(value.view, batch: 0, head: head)
      rows.rotate()
      let scales = FoldedValueScales(maxima: rows.rowMaxima(), integers: true)
      let expected = reciprocals[head * shape.keyValueLength..<(head + 1) * shape.keyValueLength]
      for (a, b) in zip(scales.reciprocals, expected) {
        // An integer may fall on the other side of its edge.
        #expect((a - b).magnitude <= (scales.isInteger ? 0 : 1e-4 * b))
      }
      valueCodes +=
        HeadCodes(
          rows,
          .int8(.token),
          multipliers: (0..<rows.count).map(scales.multiplier)
        ).codes
    }
    expectSameCodes(valueCodes, try #require(file.tensors["v8"]), "value")
  }
}
